"""Settings of each kind of corpus; `kind` says which one a recipe's `[corpus]` section is."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.settings import Settings

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
Task = Literal["translation", "generation"]


class _CorpusSettings(Settings):
    tasks: ClassVar[tuple[Task, ...]] = ("translation",)


class DatesSettings(_CorpusSettings):
    """Dates as people write them, made by `model.corpora.dates`."""

    kind: Literal["dates"]
    num_train: int = Field(default=200_000, gt=0)
    num_validation: int = Field(default=2_000, gt=0)
    num_test: int = Field(default=2_000, gt=0)
    first_year: int = Field(default=1600, ge=1000, le=9998)
    last_year: int = Field(default=2199, ge=1000, le=9998)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last_year < self.first_year:
            raise ValueError(f"last_year {self.last_year} is before first_year {self.first_year}")
        return self


class StdlibSettings(_CorpusSettings):
    """Python source of the running interpreter's standard library."""

    tasks = ("generation",)
    kind: Literal["stdlib"]


class FolderSettings(_CorpusSettings):
    """A corpus of files: paths start at `folder`, which `--data` replaces.

    Attributes:
        max_line_bytes: a longer line is left out, as is a longer text in a column of Parquet.
        drop_duplicates: leave out what equals an earlier example of the same split; they are counted anyway.
    """

    folder: str | None = None
    max_line_bytes: int = Field(default=1 << 20, gt=0)
    drop_duplicates: bool = False


class PairSettings(FolderSettings):
    """A corpus of files that holds pairs, or may.

    Attributes:
        synthetic_pairs: JSON Lines, as `dragoman back-translate` writes them, of pairs to train on beside the
            corpus' own; relative paths start at `folder`. Validation and test stay as they are, and a pair with a
            text of theirs is left out. Duplicates are looked for among these pairs alone.
    """

    synthetic_pairs: tuple[str, ...] = ()


class Multi30kSettings(PairSettings):
    """Multi30k (Elliott et al. 2016), English and German captions; downloaded where no folder is given."""

    kind: Literal["multi30k"]
    source: Literal["de", "en"] = "de"
    target: Literal["de", "en"] = "en"
    tokenized: bool = False  # the lower-cased, normalised, tokenized edition

    @model_validator(mode="after")
    def _two_languages(self) -> Self:
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.source!r}")
        return self


class ShakespeareSettings(FolderSettings):
    """Tiny Shakespeare (Karpathy 2015); the split is nanoGPT's: the first 90 % train, the rest validates."""

    tasks = ("generation",)
    kind: Literal["shakespeare"]


class SplitSettings(PairSettings):
    """Files for each split; where validation or test has none, a share of the training data is held out."""

    validation_share: Share = 0.02
    test_share: Share = 0.02

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

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} and {self.target}"


class ParallelSettings(SplitSettings):
    """Pairs from two text files."""

    kind: Literal["parallel"]
    train: ParallelFiles
    validation: ParallelFiles | None = None
    test: ParallelFiles | None = None


class PatternSettings(SplitSettings):
    """Each split is a file, all files that a pattern such as `**/*.md` fits, or `-`: standard input."""

    train: str
    validation: str | None = None
    test: str | None = None


class TsvSettings(PatternSettings):
    """Pairs from two columns, counted from 0, of a tab-separated file."""

    kind: Literal["tsv"]
    source_column: int = Field(default=0, ge=0)
    target_column: int = Field(default=1, ge=0)


class JsonLinesSettings(PatternSettings):
    """One JSON object a line: two fields for translation, one for generation."""

    tasks = ("translation", "generation")
    kind: Literal["jsonl"]
    source_field: str = "source"
    target_field: str = "target"
    text_field: str = "text"


class ParquetSettings(PatternSettings):
    """Apache Parquet: two columns of text for translation, one for generation."""

    tasks = ("translation", "generation")
    kind: Literal["parquet"]
    source_column: str = "source"
    target_column: str = "target"
    text_column: str = "text"


class TextSettings(PatternSettings):
    """Plain text, each file a document; of standard input, each line is one."""

    tasks = ("generation",)
    kind: Literal["text"]


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
