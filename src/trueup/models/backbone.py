"""One frozen base model that plays every role: an adapter switched on is another model.

    base weights ──┬── no adapter            the base itself
                   ├── adapter "champion"    what serves
                   └── adapter "policy"      what trains

Weights are named by what they contain: `weights_…` is a hash over the base's safetensors and the
adapter's, so two folders with the same bytes are the same model, and a model that changed by one
bit is another. Only safetensors are read; a pickled file is refused.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.errors import ModelError
from trueup.models import chat
from trueup.models.config import DtypeName
from trueup.models.stopping import before_stop, stop_watch
from trueup.records import Completion, Messages, Sampling, content_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Backbone", "adapter_weights", "base_weights", "is_whole", "own_seeds"]

ADAPTER_FILE = "adapter_model.safetensors"


class Backbone:
    """A base model with its tokenizer, and the adapters that make it other models."""

    def __init__(self, folder: Path, model: "PreTrainedModel", tokenizer: Any) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.base_weights = base_weights(folder)
        self.template = chat.template_hash(self.tokenizer)
        self._model: Any = model  # a PeftModel once there is an adapter
        self._active: str | None = None
        self._siblings: dict[Path, Backbone] = {}

    @classmethod
    def load(
        cls, folder: Path, *, device: str | None = None, dtype: DtypeName = "auto"
    ) -> "Backbone":
        """Load a model folder on the GPU if there is one, else on the CPU.

        Args:
            dtype: see `models.dtype`.

        Raises:
            ModelError: no folder, no config, no tokenizer, no chat template, or no safetensors.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from trueup.models.dtype import choose_dtype
        from trueup.models.kv_cache import ATTENTION
        from trueup.models.norm import fuse_norms
        from trueup.models.thin import turn_thin_products

        logging.disable_progress_bar()  # it draws over ours, and is over in a second
        _check_folder(folder)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=choose_dtype(dtype, device),
                use_safetensors=True,
                attn_implementation=ATTENTION,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"The model in {folder} could not be loaded",
                got=str(error).splitlines()[0],
                expected="a transformers folder with config, tokenizer and safetensors",
                next="pull it again with 'trueup model pull'",
            ) from error
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer in {folder} has no chat template",
                got=None,
                expected="chat_template.jinja or a template in tokenizer_config.json",
                next="use an instruction-tuned model, or add the template it was trained with",
            )
        fuse_norms(model)
        turn_thin_products(model)
        return cls(folder, model.to(device).eval(), tokenizer)

    def sibling(self, folder: Path) -> "Backbone":
        """Another whole model on the same device. The last two stay loaded: a champion and its
        candidate."""
        if folder not in self._siblings:
            self._siblings[folder] = Backbone.load(
                folder, device=str(self.device), dtype=self.dtype_name
            )
            for oldest in list(self._siblings)[:-2]:
                del self._siblings[oldest]
        return self._siblings[folder]

    # --- roles --------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The network, playing whatever role is switched on."""
        return self._model

    @property
    def context(self) -> int:
        """Tokens the model can hold; a billion where its config does not say."""
        return int(getattr(self._model.config, "max_position_embeddings", None) or 10**9)

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding: a token's id is below it."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def dtype_name(self) -> DtypeName:
        """The format the weights are in."""
        size = next(self._model.parameters()).element_size()
        return "bfloat16" if size == 2 else "float32"

    @property
    def device(self) -> "torch.device":
        return next(self._model.parameters()).device

    def weights(self, adapter: Path | None) -> str:
        """The name of the base with this adapter, or of the base alone."""
        return adapter_weights(self.base_weights, adapter) if adapter else self.base_weights

    def attach(self, role: str, adapter: Path) -> None:
        """Load an adapter folder as a role, in place of what the role was before.

        Raises:
            ModelError: it is not a safetensors adapter, or belongs to another base.
        """
        from peft import PeftModel

        from trueup.models.lora import fuse

        _check_adapter(adapter, self.base_weights)
        self.detach(role)
        try:
            with _quiet():
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(str(adapter), adapter_name=role)
                else:
                    self._model = PeftModel.from_pretrained(
                        self._model, str(adapter), adapter_name=role
                    )
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"The adapter in {adapter} does not fit this model",
                got=str(error).strip().splitlines()[-1].strip(),
                expected="an adapter that was trained on this base",
                next="set model.base to the model it was trained on",
            ) from error
        fuse(self._model)
        self._model.eval()

    def new_adapter(
        self, role: str, *, rank: int, alpha: float, targets: Sequence[str], seed: int
    ) -> None:
        """Give a role a fresh LoRA adapter: B is zero, so it starts as the base, to the bit."""
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model

        from trueup.models.lora import fuse

        self.detach(role)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it; halves are fine
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules="all-linear" if list(targets) == ["all-linear"] else list(targets),
        )
        try:
            with torch.random.fork_rng(), _quiet():
                torch.manual_seed(seed)
                if isinstance(self._model, PeftModel):
                    self._model.add_adapter(role, config)
                else:
                    self._model = get_peft_model(self._model, config, adapter_name=role)
        except ValueError as error:
            raise ModelError(
                "The model has no such layers to give an adapter to",
                got=list(targets),
                expected="names of its linear layers, or all-linear",
                next="correct train.lora_targets",
            ) from error
        fuse(self._model)
        self._model.eval()

    def detach(self, role: str) -> None:
        """Forget a role's adapter, if it has one."""
        if role in getattr(self._model, "peft_config", {}):
            if len(self._model.peft_config) == 1:
                self._model = self._model.unload()
            else:
                if role in self._model.active_adapters:  # peft would warn that it picks another
                    others = [one for one in self._model.peft_config if one != role]
                    self._model.set_adapter(others[0])
                self._model.delete_adapter(role)

    @contextmanager
    def acting_as(self, role: str | None) -> Iterator[Any]:
        """The network in one role; None is the base. Roles nest; the outer one comes back."""
        before, self._active = self._active, role
        try:
            self._switch(role)
            yield self._model
        finally:
            self._active = before
            if before is None or before in getattr(self._model, "peft_config", {}):
                self._switch(before)  # a role detached inside must not hide what went wrong there

    def _switch(self, role: str | None) -> None:
        """Turn a role's adapter on, or all of them off."""
        known = getattr(self._model, "peft_config", {})
        if role is not None and role not in known:
            raise ModelError(
                "This role has no adapter",
                got=role,
                expected=f"one of {sorted(known)}, or None",
                next="attach one first",
            )
        if role is not None:
            self._model.base_model.enable_adapter_layers()
            self._model.set_adapter(role)
        elif known:
            self._model.base_model.disable_adapter_layers()

    def save_adapter(self, role: str, folder: Path, *, card: dict[str, Any]) -> str:
        """Write a role's adapter as safetensors with a JSON card beside it; returns its weights."""
        self._model.save_pretrained(str(folder), selected_adapters=[role], safe_serialization=True)
        nested = folder / role  # peft puts named adapters one level down
        if nested.is_dir():
            for file in nested.iterdir():
                file.replace(folder / file.name)
            nested.rmdir()
        (folder / "README.md").unlink(missing_ok=True)  # peft's template says nothing true of us
        card = {"base_weights": self.base_weights, "template": self.template, **card}
        (folder / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True))
        return self.weights(folder)

    def merge(self, adapter: Path) -> None:
        """Add an adapter's product into the weights for good. The folder's name no longer fits."""
        self.attach("merged", adapter)
        self._model = self._model.merge_and_unload(adapter_names=["merged"])

    def save_whole(self, folder: Path, *, card: dict[str, Any]) -> str:
        """Write the whole model, with its tokenizer, as safetensors; returns its weights."""
        self._model.save_pretrained(str(folder), safe_serialization=True)
        self.tokenizer.save_pretrained(str(folder))
        card = {"start_weights": self.base_weights, "template": self.template, **card}
        (folder / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True))
        return base_weights(folder)

    # --- drawing ------------------------------------------------------------------------------

    def complete(
        self,
        prompts: Sequence[Messages],
        sampling: Sampling,
        *,
        role: str | None,
        weights: str,
        num_samples: int = 1,
        on_progress: Any = None,
    ) -> list[list[Completion]]:
        """Draw `num_samples` completions of every prompt in a role; a finished one makes room for
        the next.

        Args:
            weights: the role's name, written on every completion.
            on_progress: called with the number of prompts just done.

        Returns:
            For each prompt, in the order given, its completions.

        Raises:
            ModelError: a prompt leaves no room for an answer of `sampling.max_tokens`.
        """
        from trueup.models.sampler import Drawn, SampleRequest, sample

        encoded = [chat.prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, encoded, strict=True):
            self._need_room(prompt, len(ids), sampling.max_tokens)
        seeded = own_seeds(sampling, prompts)
        # prompts of similar length and beginning next to each other
        order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]) // 64, encoded[i]))
        done: dict[int, list[Completion]] = {}
        ended: Counter[int] = Counter()

        def on_done(key: int, _: int, __: Drawn) -> None:
            ended[key] += 1
            if on_progress and ended[key] == num_samples:
                on_progress(1)

        with self.acting_as(role) as model:
            drawn = sample(
                model,
                [SampleRequest(encoded[i], seeded[i], num_samples) for i in order],
                eos_ids=chat.eos_ids(self.tokenizer),
                on_token=stop_watch(self._decode, sampling.stop),
                on_done=on_done,
            )
        for i, group in zip(order, drawn, strict=True):
            done[i] = [self.completion(d, encoded[i], weights, sampling) for d in group]
        return [done[i] for i in range(len(prompts))]

    def _need_room(self, prompt: Messages, size: int, max_tokens: int) -> None:
        if size + max_tokens > self.context:
            raise ModelError(
                "A prompt leaves no room for an answer in the model's context",
                got=f"{size} tokens, beginning with {prompt[-1].content[:60]!r}, and up to "
                f"{max_tokens} of an answer",
                expected=f"at most {self.context} together",
                next="shorten or drop that prompt, or lower the stage's max_tokens",
            )

    def completion(
        self, drawn: Any, prompt_ids: Sequence[int], weights: str, sampling: Sampling
    ) -> Completion:
        """A sequence of tokens drawn after these prompt tokens, as a record's part. Its text ends
        before the first stop string; its tokens are all that were drawn."""
        whole = self._decode(drawn.token_ids)
        text = before_stop(whole, sampling.stop)
        return Completion(
            text=text,
            token_ids=tuple(drawn.token_ids),
            logprobs=tuple(drawn.logprobs),
            finish_reason=drawn.finish_reason if text == whole else "stop",
            weights=weights,
            after=chat.digest(prompt_ids),
            sampling=sampling,
        )

    def _decode(self, token_ids: Sequence[int]) -> str:
        return chat.decode(self.tokenizer, token_ids)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft asks transformers by an old name, and transformers says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def own_seeds(sampling: Sampling, prompts: Sequence[Messages]) -> list[Sampling]:
    """For each prompt a seed of its own: a function of the seed and the prompt, so that neither
    the batch nor what was drawn before plays a part. A prompt's second copy gets another."""
    if sampling.seed is None:
        return [sampling] * len(prompts)
    copies: Counter[Messages] = Counter()
    seeded = []
    for prompt in prompts:
        said = [sampling.seed, copies[prompt], [m.model_dump() for m in prompt]]
        copies[prompt] += 1
        seed = int(content_hash(said)[:11], 16)
        seeded.append(sampling.model_copy(update={"seed": seed}))
    return seeded


def is_whole(folder: Path) -> bool:
    """True for a folder with a model of its own, not an adapter."""
    return (folder / "config.json").is_file()


def base_weights(folder: Path) -> str:
    """`weights_` and 20 hex digits over a base model's safetensors and the settings that say what
    they compute."""
    config = json.loads((folder / "config.json").read_text())
    settings = {
        k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"weights_{digest.hexdigest()[:20]}"


_NO_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
)
"""Settings of an adapter that say where it came from, not what it does."""


def adapter_weights(base: str, adapter: Path) -> str:
    """`weights_` and 20 hex digits over the base's name, the adapter's tensors and its settings."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    settings = {
        key: sorted(value) if isinstance(value, list) else value  # peft writes sets in any order
        for key, value in config.items()
        if key not in _NO_EFFECT
    }
    digest = hashlib.sha256(base.encode() + json.dumps(settings, sort_keys=True).encode())
    digest.update((adapter / ADAPTER_FILE).read_bytes())
    return f"weights_{digest.hexdigest()[:20]}"


def _check_folder(folder: Path) -> None:
    needed = {
        "a config.json": any(folder.glob("config.json")),
        "safetensors weights": any(folder.glob("*.safetensors")),
        "a tokenizer": any(folder.glob("tokenizer.json")) or any(folder.glob("tokenizer.model")),
    }
    missing = [name for name, there in needed.items() if not there]
    if missing:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise ModelError(
            f"The model folder {folder} lacks {', '.join(missing)}",
            got=found,
            expected="config.json, tokenizer.json and *.safetensors (pickled weights are not read)",
            next="pull it again with 'trueup model pull', or save the tokenizer beside the weights",
        )


def _check_adapter(adapter: Path, base: str) -> None:
    if not (adapter / ADAPTER_FILE).is_file() or not (adapter / "adapter_config.json").is_file():
        raise ModelError(
            f"{adapter} is not an adapter this program reads",
            got=sorted(p.name for p in adapter.iterdir()) if adapter.is_dir() else "no such folder",
            expected=f"{ADAPTER_FILE} and adapter_config.json (pickled files are refused)",
            next="save it again with safe_serialization=True",
        )
    card = adapter / "card.json"
    trained_on = json.loads(card.read_text()).get("base_weights") if card.is_file() else None
    if trained_on not in (None, base):
        raise ModelError(
            f"The adapter in {adapter} belongs to another base model",
            got=trained_on,
            expected=base,
            next="set model.base to the model it was trained on",
        )
