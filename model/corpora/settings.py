"""Settings of each kind of corpus; `kind` says which one a recipe's `[corpus]` section is."""

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from dragoman.common.settings import Settings

__all__ = [
    "CorpusSettings",
    "DatesSettings",
    "FolderSettings",
    "JsonLinesSettings",
    "Multi30kSettings",
    "PairSettings",
    "ParallelFiles",
    "ParallelSettings",
    "ParquetSettings",
    "PatternSettings",
    "ShakespeareSettings",
    "SplitSettings",
    "StdlibSettings",
    "TextSettings",
    "TsvSettings",
]

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
_MAX_COLUMN: Final = 10_000
_MAX_EXAMPLES: Final = 10_000_000  # of a corpus that is made: all of it is in memory
FileName = Annotated[str, Field(min_length=1)]
Task = Literal["translation", "generation"]


class _CorpusSettings(Settings):
    tasks: ClassVar[tuple[Task, ...]] = ("translation",)


class DatesSettings(_CorpusSettings):
    """Dates as people write them, made by `dragoman.model.corpora.dates`."""

    kind: Literal["dates"]
    """The kind of corpus."""
    num_train: int = Field(default=200_000, gt=0, le=_MAX_EXAMPLES)
    """Pairs to train on."""
    num_validation: int = Field(default=2_000, gt=0, le=_MAX_EXAMPLES)
    """Pairs to validate on."""
    num_test: int = Field(default=2_000, gt=0, le=_MAX_EXAMPLES)
    """Pairs to test on."""
    first_year: int = Field(default=1600, ge=1000, le=9998)
    """First year of the dates."""
    last_year: int = Field(default=2199, ge=1000, le=9998)
    """Last year of the dates."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last_year < self.first_year:
            raise ValueError(f"last_year {self.last_year} is before first_year {self.first_year}")
        return self


class StdlibSettings(_CorpusSettings):
    """Python source of the running interpreter's standard library."""

    tasks = ("generation",)
    kind: Literal["stdlib"]
    """The kind of corpus."""


class FolderSettings(_CorpusSettings):
    """A corpus of files: paths start at `folder`, which `--data` replaces."""

    folder: str | None = None
    """Folder that the corpus's paths start at. `--data` replaces it. Left out: the recipe file's own
    folder."""
    max_line_bytes: int = Field(default=1 << 20, gt=0, le=1 << 30)
    """A longer line is left out and counted."""
    drop_duplicates: bool = False
    """Leaves out an example that equals an earlier one of the same split. Duplicates are counted anyway."""


class PairSettings(FolderSettings):
    """A corpus of files that holds pairs, or may."""

    synthetic_pairs: tuple[FileName, ...] = ()
    """Files that `dragoman back-translate` wrote: pairs to train on beside the corpus's own. Validation and
    test do not use them."""


class Multi30kSettings(PairSettings):
    """Multi30k (Elliott et al. 2016), English and German captions; downloaded where no folder is given."""

    kind: Literal["multi30k"]
    """The kind of corpus."""
    source: Literal["de", "en"] = "de"
    """Source language."""
    target: Literal["de", "en"] = "en"
    """Target language."""
    tokenized: bool = False
    """Takes the lower-cased, normalised, tokenized edition."""

    @model_validator(mode="after")
    def _two_languages(self) -> Self:
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}")
        return self


class ShakespeareSettings(FolderSettings):
    """Tiny Shakespeare (Karpathy 2015); the split is nanoGPT's: the first 90 % train, the rest validates."""

    tasks = ("generation",)
    kind: Literal["shakespeare"]
    """The kind of corpus."""


class SplitSettings(PairSettings):
    """Files for each split; where validation or test has none, a share of the training data is held out."""

    validation_share: Share = 0.02
    """Share of the training data that is held out for validation, where no file is given for it. At most
    10,000 examples."""
    test_share: Share = 0.02
    """The same for the test split."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError(
                f"nothing is left to train on: validation_share {self.validation_share}, "
                f"test_share {self.test_share}"
            )
        return self


class ParallelFiles(Settings):
    """Two text files whose lines are translations of each other."""

    source: FileName
    """File of source lines."""
    target: FileName
    """File of target lines."""

    def __str__(self) -> str:
        return f"{self.source} and {self.target}"


class ParallelSettings(SplitSettings):
    """Pairs from two text files."""

    kind: Literal["parallel"]
    """The kind of corpus."""
    train: ParallelFiles
    """The two files to train on."""
    validation: ParallelFiles | None = None
    """The two files to validate on."""
    test: ParallelFiles | None = None
    """The two files to test on."""


class PatternSettings(SplitSettings):
    """Each split is a file, all files that a pattern such as `**/*.md` fits, or `-`: standard input."""

    train: FileName
    """A file, a pattern such as `**/*.md`, or `-` for standard input."""
    validation: FileName | None = None
    """The same for validation."""
    test: FileName | None = None
    """The same for the test split."""


class TsvSettings(PatternSettings):
    """Pairs from two columns, counted from 0, of a tab-separated file."""

    kind: Literal["tsv"]
    """The kind of corpus."""
    source_column: int = Field(default=0, ge=0, le=_MAX_COLUMN)
    """Column of the source, from 0."""
    target_column: int = Field(default=1, ge=0, le=_MAX_COLUMN)
    """Column of the target, from 0."""
    header: bool | Literal["auto"] = "auto"
    """Whether the first line of each file names the columns and is left out. `auto`: where the names are known
    ones, such as `source` and `target` or `en` and `de`. A line that is left out is counted and shown."""


class JsonLinesSettings(PatternSettings):
    """One JSON object a line: two fields for translation, one for generation."""

    tasks = ("translation", "generation")
    kind: Literal["jsonl"]
    """The kind of corpus."""
    source_field: str = "source"
    """Field of the source, for translation."""
    target_field: str = "target"
    """Field of the target, for translation."""
    text_field: str = "text"
    """Field of the text, for generation."""


class ParquetSettings(PatternSettings):
    """Apache Parquet: two columns of text for translation, one for generation."""

    tasks = ("translation", "generation")
    kind: Literal["parquet"]
    """The kind of corpus."""
    source_column: str = "source"
    """Column of the source, for translation."""
    target_column: str = "target"
    """Column of the target, for translation."""
    text_column: str = "text"
    """Column of the text, for generation."""


class TextSettings(PatternSettings):
    """Plain text, each file a document; of standard input, each line is one."""

    tasks = ("generation",)
    kind: Literal["text"]
    """The kind of corpus."""


CorpusSettings = Annotated[
    DatesSettings
    | StdlibSettings
    | Multi30kSettings
    | ShakespeareSettings
    | ParallelSettings
    | TsvSettings
    | JsonLinesSettings
    | ParquetSettings
    | TextSettings,
    Field(discriminator="kind"),
]
