"""Recipes: everything that decides a training run, as typed, validated settings read from TOML.

A recipe is one of those beside this file (`builtin_recipes`) or a path to a `.toml` of one's own;
`docs/example-recipe.toml` is a commented one to copy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from dragoman.common.settings import Settings, parse_overrides, read_toml
from dragoman.model.corpora.settings import CorpusSettings, FolderSettings, Multi30kSettings, PairSettings
from dragoman.model.errors import RecipeError
from dragoman.model.transformer import Dimensions

__all__ = [
    "BleuTokenization",
    "ModelSettings",
    "QualitySettings",
    "Recipe",
    "TokenizerSettings",
    "TrainingSettings",
    "builtin_recipes",
    "load_recipe",
]

_RECIPES: Final = Path(__file__).parent / "recipes"

Share = Annotated[float, Field(ge=0.0, lt=1.0)]

MAX_COUNT: Final = 2**31 - 1
"""The largest count. A larger one does not fit into the integers of the libraries below."""
_MAX_WIDTH: Final = 2**16
_MAX_LAYERS: Final = 1_000
_MAX_TOKENS: Final = 2**20
BleuTokenization = Literal["13a", "intl", "zh", "char", "none"]
"""How BLEU cuts text into words, by sacreBLEU's names; `none`: at spaces alone."""


class TokenizerSettings(Settings):
    """How text becomes token ids."""

    kind: Literal["bpe", "byte_bpe", "character"]
    """`bpe` merges characters within words. `byte_bpe` merges bytes, so no text is unknown to it. `character`
    makes one token of each character."""
    vocabulary_size: int = Field(default=8_000, ge=8, le=1_000_000)
    """Most tokens in the vocabulary, the four special tokens included. A `character` tokenizer keeps the most
    frequent characters."""
    normalization: Literal["none", "nfc", "nfkc"] = "nfc"
    """Unicode form of the text before it is cut into tokens. Decoding does not undo it."""
    lowercase: bool = False
    """Turns upper case into lower case. Rare words are then seen more often."""
    strip_accents: bool = False
    """Removes accents: the model reads `kesäkuuta` as `kesakuuta`."""
    max_digits: int = Field(default=0, ge=0, le=9)
    """For `bpe`: digits form groups of at most this many, from the left. `2031` is then two tokens for 2. 0:
    the merges decide."""
    splits_punctuation: bool = True
    """For `bpe`: each punctuation mark is a token. Turn it off for text that is tokenized already."""
    dropout: Share = 0.0
    """For `bpe` and translation: the share of merges that training leaves out at random (BPE-dropout,
    Provilkov et al. 2020)."""
    num_editions: int = Field(default=8, ge=1, le=1_000)
    """With `dropout`: the number of random cuts of each pair that training cycles through."""
    max_training_characters: int = Field(default=100_000_000, gt=0, le=2**40)
    """The vocabulary is learned from at most this many characters, spread evenly over the corpus."""

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

    width: int = Field(gt=0, le=_MAX_WIDTH)
    """Size of each token's vector, d_model in Vaswani et al. A multiple of `num_heads`."""
    num_heads: int = Field(gt=0, le=_MAX_WIDTH)
    """Attention heads of each layer."""
    num_kv_heads: int | None = Field(default=None, gt=0, le=_MAX_WIDTH)
    """Key and value heads (grouped-query attention, Ainslie et al. 2023). Left out: as many as
    `num_heads`."""
    feed_forward_width: int | None = Field(default=None, gt=0, le=4 * _MAX_WIDTH)
    """Inner size of the feed-forward network. Left out: 4 times `width`."""
    num_encoder_layers: int = Field(default=0, ge=0, le=_MAX_LAYERS)
    """Encoder layers. For translation only."""
    num_decoder_layers: int = Field(gt=0, le=_MAX_LAYERS)
    """Decoder layers."""
    max_source_tokens: int = Field(default=0, ge=0, le=_MAX_TOKENS)
    """Longest source, in tokens. Training leaves longer examples out; the server refuses longer inputs. For
    translation only."""
    max_target_tokens: int = Field(gt=0, le=_MAX_TOKENS)
    """Longest target, in tokens. For generation: longest document part, prompt and answer together."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Activation of the feed-forward network."""
    norm: Literal["pre", "post"] = "pre"
    """`pre` normalizes before each sublayer and trains more stably. `post` normalizes after it, as the paper
    does."""
    dropout: Share = 0.1
    """Dropout of embeddings, of each sublayer's output and inside the feed-forward network."""
    attention_dropout: Share = 0.0
    """Dropout of the attention weights."""


_ADAMW_LEARNING_RATE: Final = 1e-3  # four times as much suits Muon, whose steps are scaled to AdamW's


class TrainingSettings(Settings):
    """The training loop. Training ends at `max_steps` or after `max_minutes`, whichever comes first."""

    max_steps: int | None = Field(default=None, gt=0, le=MAX_COUNT)
    """Training ends after this many optimizer steps."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Training ends within this many minutes. They begin when the corpus is ready, and hold validation and the
    measurement of the final weights. Where they are too few for these, fewer examples are measured."""
    batch_tokens: int = Field(default=4_096, gt=0, le=MAX_COUNT)
    """Padded tokens of one forward pass. The longer side of a pair counts."""
    accumulation_steps: int = Field(default=1, gt=0, le=MAX_COUNT)
    """Forward passes that one optimizer step sums over."""
    max_learning_rate: float = Field(default=4e-3, gt=0)
    """The peak of the learning rate, reached at the end of the warm-up. With `adamw` the default is 1e-3."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """The learning rate at the end of the `cosine` schedule."""
    warmup_steps: int = Field(default=300, ge=0, le=MAX_COUNT)
    """Steps in which the learning rate rises from 0 to its peak. The warm-up ends after a tenth of the training at
    the latest."""
    schedule: Literal["inverse_sqrt", "cosine", "constant"] = "cosine"
    """Decay after the peak: `inverse_sqrt` (Vaswani et al. 2017, section 5.3), `cosine` down to
    `min_learning_rate`, or `constant`."""
    beta1: Share = 0.9
    """Decay of the optimizer's mean of gradients."""
    beta2: Share = 0.98
    """Decay of the optimizer's mean of squared gradients."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay (Loshchilov and Hutter 2019)."""
    label_smoothing: Share = 0.1
    """Share of probability that the target gives to all other tokens (Szegedy et al. 2016)."""
    r_drop: float = Field(default=0.0, ge=0)
    """Weight of R-Drop (Liang et al. 2021; alpha in the paper). Each batch is read twice, which doubles the
    time. 0: off."""
    r_drop_from: Share = 0.0
    """Share of the training after which R-Drop begins. R-Drop from the start slows learning down."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """`adamw` (Loshchilov and Hutter 2019), or `muon` (Jordan et al. 2024) for the matrices of linear layers
    and `adamw` for the rest. `muon` needs fewer steps. With `parallel = "fsdp"` the default is `adamw`."""
    max_gradient_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global norm. 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 where the device gains from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the work: with `ddp` each process holds all weights, with `fsdp`
    a part of them."""
    state_interval_s: float = Field(default=60.0, ge=0)
    """Seconds between two saves of the training's state. A killed training loses no more than that."""
    num_threads: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = "auto"
    """CPU threads. `auto`: one for each core that this process may use."""
    evaluation_interval_steps: int = Field(default=250, gt=0, le=MAX_COUNT)
    """Steps between two validations. Each validation also saves a checkpoint. With `max_minutes`, validations take
    a quarter of the time at most."""
    max_validation_examples: int = Field(default=2_000, gt=0, le=MAX_COUNT)
    """Most examples that one validation reads."""
    patience: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Training stops after this many validations without improvement. 0: it never stops early."""
    average_checkpoints: int = Field(default=3, ge=1, le=1000)
    """Number of best checkpoints that are kept. The final weights are their mean, or the best one where that
    validates better. 1: the best one."""
    num_quality_examples: int = Field(default=1_000, gt=0, le=MAX_COUNT)
    """Held-out examples that are decoded to measure quality at the end."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        optimizer = {"optimizer": "adamw"} if values.get("parallel") == "fsdp" else {}
        rate = (
            {"max_learning_rate": _ADAMW_LEARNING_RATE}
            if {**optimizer, **values}.get("optimizer") == "adamw"
            else {}
        )
        return {**optimizer, **rate, **values}

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
                "optimizer muon works on whole matrices: parallel fsdp, which splits them, takes optimizer = 'adamw'"
            )
        return self


class QualitySettings(Settings):
    """How translations are compared with their references: in training, at export and by `dragoman evaluate`."""

    bleu_tokenization: BleuTokenization | Literal["auto"] = "auto"
    """How BLEU cuts text into words, by sacreBLEU's names. `13a` is for languages with spaces, `intl` knows all
    of Unicode's punctuation, `zh` is for Chinese, `char` cuts at each character, `none` at spaces alone. `auto`
    is `none` for a corpus that is tokenized already and `13a` for all others."""
    ignore_case: bool | Literal["auto"] = "auto"
    """Takes upper and lower case as the same. `auto`: where `tokenizer.lowercase` is set, because such a model
    cannot write both."""


class Recipe(Settings):
    """One training run, whole."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the recipe, and of the served model unless `export` is given another."""
    description: str = ""
    """One line about the recipe."""
    task: Literal["translation", "generation"]
    """`translation` learns from pairs of texts, with an encoder and a decoder. `generation` learns from
    texts, with a decoder."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """The same seed and the same data repeat the run."""
    corpus: CorpusSettings
    """What the model learns from."""
    tokenizer: TokenizerSettings
    """How text becomes token ids."""
    model: ModelSettings
    """The shape of the Transformer."""
    training: TrainingSettings
    """The training loop."""
    quality: QualitySettings = QualitySettings()
    """How translations are compared with their references."""

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
    def bleu_tokenization(self) -> BleuTokenization:
        """How BLEU cuts this corpus's text into words."""
        if self.quality.bleu_tokenization != "auto":
            return self.quality.bleu_tokenization
        return "none" if isinstance(self.corpus, Multi30kSettings) and self.corpus.tokenized else "13a"

    @property
    def ignores_case(self) -> bool:
        """Whether quality is measured without regard to upper and lower case."""
        return self.tokenizer.lowercase if self.quality.ignore_case == "auto" else self.quality.ignore_case

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
    return tuple(sorted(file.stem for file in _RECIPES.glob("*.toml")))


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
    values = read_toml(_RECIPES / f"{name_or_path}.toml" if builtin else Path(name_or_path))
    recipe = Recipe.load(parse_overrides(values, overrides), source=f"recipe {name_or_path}")
    if isinstance(recipe.corpus, FolderSettings) and (recipe.corpus.folder or not builtin):
        base = Path.cwd() if builtin else Path(name_or_path).parent
        return recipe.with_data(base / Path(recipe.corpus.folder or "").expanduser())
    return recipe
