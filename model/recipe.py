"""Recipes: everything that decides a training run, as typed, validated settings read from TOML.

A recipe is one of those beside this file (`builtin_recipes`) or a path to a `.toml` of one's own;
`docs/example-recipe.toml` is a commented one to copy.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.settings import Settings, parse_overrides, read_toml
from model.corpora.settings import CorpusSettings, FolderSettings, Multi30kSettings, PairSettings
from model.errors import RecipeError
from model.transformer import Dimensions

__all__ = [
    "ModelSettings",
    "Recipe",
    "TokenizerSettings",
    "TrainingSettings",
    "builtin_recipes",
    "load_recipe",
]

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class TokenizerSettings(Settings):
    """How text becomes token ids.

    Attributes:
        kind: `bpe` merges characters within words, `byte_bpe` merges bytes (no text is unknown to it),
            `character` is one token a character.
        vocabulary_size: upper limit, the four special tokens included; a `character` tokenizer keeps the
            most frequent ones.
        normalization: Unicode form text is brought to first; anything but `none` is not undone by decoding.
        lowercase: fold upper case into lower; where case says nothing, rare words are seen more often.
        max_digits: for `bpe`, digits stand together in groups of at most so many, from the left; 0 leaves them
            to the merges. In pairs, `2031` is two tokens that are read and written as a whole.
        strip_accents: leave marks out (`kesäkuuta` is read as `kesakuuta`), where people do too.
        splits_punctuation: for `bpe`, each punctuation mark is a token; turn it off for text that is tokenized
            already, with a space before each mark.
        dropout: for `bpe` and translation, the share of merges left out at random while training
            (BPE-dropout, Provilkov et al. 2020), in `num_editions` random cuts of each pair.
        max_training_characters: of a larger corpus the vocabulary is learned from so much, evenly spread.
    """

    kind: Literal["bpe", "byte_bpe", "character"]
    vocabulary_size: int = Field(default=8_000, ge=8, le=1_000_000)
    normalization: Literal["none", "nfc", "nfkc"] = "none"
    lowercase: bool = False
    strip_accents: bool = False
    max_digits: int = Field(default=0, ge=0, le=9)
    splits_punctuation: bool = True
    dropout: Share = 0.0
    num_editions: int = Field(default=8, ge=1)
    max_training_characters: int = Field(default=100_000_000, gt=0)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if self.max_digits and self.kind != "bpe":
            raise ValueError(f"max_digits {self.max_digits} is for kind bpe, not {self.kind}")
        if self.dropout and self.kind != "bpe":
            raise ValueError(f"dropout {self.dropout} is for kind bpe, not {self.kind}")
        if self.kind == "byte_bpe" and self.vocabulary_size < 260:
            raise ValueError(
                f"vocabulary_size {self.vocabulary_size} does not hold 256 bytes and 4 special tokens"
            )
        return self


class ModelSettings(Settings):
    """The Transformer's shape; what is left out takes the paper's proportions."""

    width: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int | None = Field(default=None, gt=0)  # as many as num_heads
    feed_forward_width: int | None = Field(default=None, gt=0)  # 4 * width
    num_encoder_layers: int = Field(default=0, ge=0)
    num_decoder_layers: int = Field(gt=0)
    max_source_tokens: int = Field(default=0, ge=0)
    max_target_tokens: int = Field(gt=0)
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    norm: Literal["pre", "post"] = "pre"
    dropout: Share = 0.1  # of embeddings, of each sublayer's output and of the feed-forward network's inside
    attention_dropout: Share = 0.0  # of the attention's weights


class TrainingSettings(Settings):
    """The training loop. Training ends at `max_steps` or after `max_minutes`, whichever comes first.

    Attributes:
        batch_tokens: padded tokens a forward pass may hold (the longer side of a pair counts).
        accumulation_steps: forward passes an optimizer step sums over.
        max_learning_rate: the peak, reached after `warmup_steps`.
        schedule: decay after the peak: `inverse_sqrt` (Vaswani et al. 2017, section 5.3), `cosine` to
            `min_learning_rate` at the end (of steps or minutes), or `constant`.
        r_drop: the weight, the paper's alpha, of R-Drop (Liang et al. 2021): each batch is read twice with
            dropout of its own and the two answers are drawn together, at twice the time; 0 turns it off.
        r_drop_from: share of the training after which R-Drop begins. From the start it slows learning down.
        optimizer: `adamw` (Loshchilov and Hutter 2019), or `muon` (Jordan et al. 2024) for the matrices of linear
            layers and `adamw` for the rest; at the same learning rate it reaches the same loss in fewer steps.
        max_gradient_norm: gradients are scaled down to this global norm; 0 turns clipping off.
        parallel: how several processes (torchrun) share the work: `ddp` keeps all weights in each, `fsdp` a part.
        state_interval_s: the training's state is saved after so many seconds, and at each evaluation; a killed
            training loses no more than that.
        precision: `auto` takes bf16 autocast where the device gains from it.
        num_threads: CPU threads; `auto` is every core this process may use. For a model of a few hundred
            thousand weights one is as fast as two, and keeps its pace when the other cores are busy.
        evaluation_interval_steps: validation loss, metrics and a checkpoint every so many steps.
        patience: stop when validation has not improved for so many evaluations; 0 never stops early.
        average_checkpoints: so many checkpoints of lowest validation loss are kept, and the final weights are
            their mean, or the best one where that validates better; 1 takes the best.
        num_quality_examples: held-out examples decoded for the measured quality at the end.
    """

    max_steps: int | None = Field(default=None, gt=0)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_tokens: int = Field(default=4_096, gt=0)
    accumulation_steps: int = Field(default=1, gt=0)
    max_learning_rate: float = Field(default=1e-3, gt=0)
    min_learning_rate: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=400, ge=0)
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    beta1: Share = 0.9
    beta2: Share = 0.98
    weight_decay: float = Field(default=0.01, ge=0)
    label_smoothing: Share = 0.1
    r_drop: float = Field(default=0.0, ge=0)
    r_drop_from: Share = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    max_gradient_norm: float = Field(default=1.0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    state_interval_s: float = Field(default=60.0, ge=0)
    num_threads: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    evaluation_interval_steps: int = Field(default=500, gt=0)
    max_validation_examples: int = Field(default=2_000, gt=0)
    patience: int = Field(default=0, ge=0)
    average_checkpoints: int = Field(default=1, ge=1)
    num_quality_examples: int = Field(default=1_000, gt=0)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("training needs max_steps, max_minutes or both: it would never end")
        if self.min_learning_rate > self.max_learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"max_learning_rate {self.max_learning_rate}"
            )
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError(
                "optimizer muon works on whole matrices: parallel fsdp, which splits them, takes adamw"
            )
        return self


class Recipe(Settings):
    """One training run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    task: Literal["translation", "generation"]
    seed: int = Field(default=1, ge=0, lt=2**32)
    corpus: CorpusSettings
    tokenizer: TokenizerSettings
    model: ModelSettings
    training: TrainingSettings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.task not in self.corpus.tasks:
            raise ValueError(
                f"corpus.kind = {self.corpus.kind!r} is for {' or '.join(self.corpus.tasks)}, not {self.task}"
            )
        if (
            self.task == "generation"
            and isinstance(self.corpus, PairSettings)
            and self.corpus.synthetic_pairs
        ):
            raise ValueError(
                f"corpus.synthetic_pairs = {list(self.corpus.synthetic_pairs)} is for translation: "
                "generation learns from documents"
            )
        for name in ("num_encoder_layers", "max_source_tokens"):
            value = getattr(self.model, name)
            if self.task == "translation" and not value:
                raise ValueError(f"model.{name} must be at least 1 for translation")
            if self.task == "generation" and value:
                raise ValueError(f"model.{name} = {value}: generation has no encoder, leave it out")
        self.dimensions(self.tokenizer.vocabulary_size)  # raises when the shape itself is wrong
        return self

    @property
    def bleu_tokenization(self) -> Literal["none", "13a"]:
        """How BLEU is to cut this corpus's text into words: not at all where it is tokenized already."""
        return "none" if isinstance(self.corpus, Multi30kSettings) and self.corpus.tokenized else "13a"

    def dimensions(self, vocabulary_size: int) -> Dimensions:
        """The model's dimensions once the tokenizer, and so the vocabulary, is known."""
        model = self.model
        return Dimensions(
            task=self.task,
            vocabulary_size=vocabulary_size,
            width=model.width,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads or model.num_heads,
            feed_forward_width=model.feed_forward_width or 4 * model.width,
            num_encoder_layers=model.num_encoder_layers,
            num_decoder_layers=model.num_decoder_layers,
            max_source_tokens=model.max_source_tokens,
            max_target_tokens=model.max_target_tokens,
            activation=model.activation,
            norm=model.norm,
            dropout=model.dropout,
            attention_dropout=model.attention_dropout,
        )

    def with_data(self, data: Path | None) -> Self:
        """The recipe with its corpus read from `data` (`--data`), so that the run's record says where from.

        Raises:
            RecipeError: the corpus makes its own examples and reads no folder.
        """
        if data is None:
            return self
        if not isinstance(self.corpus, FolderSettings):
            raise RecipeError(f"recipe {self.name!r} makes its own corpus and reads no --data {data}")
        corpus = self.corpus.model_copy(update={"folder": str(data.expanduser().resolve())})
        return self.model_copy(update={"corpus": corpus})

    def without_synthetic_pairs(self) -> Self:
        """The recipe for those who read the corpus for what people wrote, or for validation and test alone."""
        if not isinstance(self.corpus, PairSettings):
            return self
        return self.model_copy(update={"corpus": self.corpus.model_copy(update={"synthetic_pairs": ()})})


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    files = resources.files("model").joinpath("recipes").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a built-in recipe or a `.toml` file, with `section.key=value` overrides laid over it.

    A relative `corpus.folder` starts at the recipe file's own folder, as does a corpus without one.

    Raises:
        RecipeError: there is no such recipe; the message lists the built-in ones.
        SettingsError: a key or value in the file or in `overrides` does not fit.
    """
    builtin = name_or_path in builtin_recipes()
    if not builtin and not name_or_path.endswith(".toml"):
        raise RecipeError(
            f"no recipe {name_or_path!r}: there are {', '.join(builtin_recipes())}, "
            f"or give the path of a .toml file"
        )
    if builtin:
        with resources.as_file(resources.files("model").joinpath("recipes", f"{name_or_path}.toml")) as path:
            values = read_toml(path)
    else:
        values = read_toml(Path(name_or_path))
    recipe = Recipe.load(parse_overrides(values, overrides), source=f"recipe {name_or_path}")
    if isinstance(recipe.corpus, FolderSettings) and (recipe.corpus.folder or not builtin):
        base = Path.cwd() if builtin else Path(name_or_path).parent
        return recipe.with_data(base / Path(recipe.corpus.folder or "").expanduser())
    return recipe
