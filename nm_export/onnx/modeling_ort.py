"""Run an exported model in ONNX Runtime as a transformers model is run: `from_pretrained`, `forward`, `generate`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from nm_export.errors import UserError
from nm_export.modeling.configuration_nm_sparse import NMSparseConfig
from nm_export.onnx.cache import ConcatenatedCache, ORTCache
from nm_export.onnx.extras import require
from nm_export.onnx.repository import local_folder
from nm_export.onnx.session import concatenates_cache, create_session

require("optimum", "onnx")
from optimum.modeling_base import OptimizedModel  # noqa: E402

_MODEL_FILE = "model.onnx"


class NMSparseORTModelForCausalLM(OptimizedModel, GenerationMixin):
    """A causal language model in ONNX Runtime: the compiled N:M operators where they are installed.

    `generate` works as it does for transformers models: greedy, sampling, beams, batches padded on either side.
    """

    main_input_name = "input_ids"
    base_model_prefix = "onnx_model"
    _is_stateful = False

    def __init__(
        self,
        session: Any,
        config: PreTrainedConfig,
        *,
        folder: Path,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        """Wrap an open session; `from_pretrained` is the usual way.

        Args:
            session: an onnxruntime.InferenceSession of a graph that `export_onnx` wrote.
            config: the published model's configuration.
            folder: where the model lies, for `save_pretrained`.
            generation_config: defaults of `generate`.
        """
        super().__init__(session, config)
        self.folder = folder
        self.generation_config = generation_config or GenerationConfig.from_model_config(config.get_text_config())
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._cache_class = ConcatenatedCache if concatenates_cache(session) else ORTCache

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        subfolder: str = "onnx",
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: bool | str | None = None,
        library: bool | None = None,
        providers: Sequence[Any] | None = None,
        session_options: Any = None,
        spinning: bool = True,
    ) -> "NMSparseORTModelForCausalLM":
        """Load a published folder or a repository of the Hub.

        Args:
            model_id: folder with config.json, or the name of a repository.
            subfolder: where model.onnx lies within it.
            revision: branch, tag or commit of the repository.
            local_files_only: never go to the network.
            cache_dir: cache of the Hub's files.
            token: for private repositories.
            library: see `create_session`.
            providers: see `create_session`.
            session_options: see `create_session`.
            spinning: see `create_session`.

        Raises:
            UserError: no such folder or repository, or no exported graph in it.
        """
        folder = local_folder(
            model_id, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir, token=token
        )
        session = create_session(
            folder / subfolder / _MODEL_FILE,
            library=library,
            providers=providers,
            session_options=session_options,
            spinning=spinning,
        )
        generation_config = None
        if (folder / "generation_config.json").is_file():
            generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return cls(session, _config(folder), folder=folder, generation_config=generation_config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: ORTCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of every position.

        Args:
            input_ids: int64 `[batch, tokens]`, the tokens that the cache does not hold yet.
            attention_mask: `[batch, cached + tokens]`, 1 for tokens and 0 for padding, which may lie on either side.
            past_key_values: the cache that an earlier call returned; it is extended in place.
            use_cache: whether to return the cache; None means yes.
            **kwargs: what transformers passes on to torch models and graphs do not need, such as `position_ids`, which
                follow from the mask.

        Returns:
            Logits float32 `[batch, tokens, vocabulary]`, those of padding without meaning; the cache.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise UserError("The ONNX graph takes token ids, not inputs_embeds.")
        batch, tokens = input_ids.shape
        cache = past_key_values if past_key_values is not None else self._cache_class.for_session(self.model, batch)
        total = cache.length + tokens
        mask = torch.ones(batch, total, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if mask.shape != (batch, total):
            raise ValueError(f"attention_mask is {tuple(mask.shape)}; {batch} rows of {total} tokens were expected.")
        cache.reserve(total)
        if self._cache_class is ConcatenatedCache:
            logits = self._run(input_ids, mask, cache, slice(batch))
        else:
            logits = self._run_packed(input_ids, mask, cache)
        cache.advance(total)
        returned: Any = None if use_cache is False else cache  # what generate asks of a cache, it has
        return CausalLMOutputWithPast(logits=logits, past_key_values=returned)

    def _run_packed(self, input_ids: Tensor, mask: Tensor, cache: ORTCache) -> Tensor:
        """Run a graph that wants every row's tokens first and its padding last; the arguments are those of `forward`.

        Its attention continues a cache by several tokens for one row at a time only.
        """
        batch, tokens = input_ids.shape
        new = mask[:, cache.length :]
        order = (~new).to(torch.int8).argsort(dim=1, stable=True)
        packed = input_ids.gather(1, order)
        lengths = mask.sum(dim=1)
        filled = torch.arange(mask.shape[1])[None] < lengths[:, None]
        if cache.length and tokens > 1 and (batch > 1 or not new.all()):
            counts = new.sum(dim=1).tolist()
            logits = torch.zeros(batch, tokens, self.config.get_text_config().vocab_size)
            for row, count in enumerate(counts):
                one = slice(row, row + 1)
                if count:
                    logits[one, :count] = self._run(packed[one, :count], filled[one, : int(lengths[row])], cache, one)
        else:
            logits = self._run(packed, filled, cache, slice(batch))
        if new.all():
            return logits
        return torch.empty_like(logits).scatter_(1, order[..., None].expand_as(logits), logits)

    def _run(self, input_ids: Tensor, mask: Tensor, cache: ORTCache, rows: slice) -> Tensor:
        """Run the graph on some rows of the cache: ids `[rows, tokens]`, mask `[rows, total]`."""
        import numpy as np

        session = self.model
        feeds = {"input_ids": input_ids.contiguous(), "attention_mask": mask.long().contiguous()}
        logits = torch.empty(*input_ids.shape, self.config.get_text_config().vocab_size)
        binding = session.io_binding()
        for name, tensor in feeds.items():
            binding.bind_input(name, "cpu", 0, np.int64, tensor.shape, tensor.data_ptr())
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.data_ptr())
        cache.bind(binding, rows)
        session.run_with_iobinding(binding)
        return logits

    def can_generate(self) -> bool:
        """Tell transformers that `generate` works."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """Tell transformers that this class is not code of a repository."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Tell transformers that no module offers a choice of expert kernels."""
        return {}

    def get_output_embeddings(self) -> None:
        """Tell transformers that there is no module of output embeddings."""
        return

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache

    def _save_config(self, save_directory: str | Path) -> None:
        pass  # copied with everything else

    def _save_pretrained(self, save_directory: str | Path) -> None:
        """Copy the published folder with real files in place of links."""
        if Path(save_directory).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of the published model, not its onnx folder.")
    fields, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    config_class = NMSparseConfig if fields.get("model_type") == NMSparseConfig.model_type else AutoConfig
    return config_class.from_pretrained(folder, local_files_only=True)
