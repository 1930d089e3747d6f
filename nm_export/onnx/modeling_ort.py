"""Run an exported model in ONNX Runtime as a transformers model is run: `from_pretrained`, `forward`, `generate`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto import modeling_auto

from nm_export.errors import UserError
from nm_export.modeling.configuration_nm_sparse import NMSparseConfig
from nm_export.onnx.cache import ConcatenatedCache, ORTCache
from nm_export.onnx.call_inputs import InputError, causal_loss, new_tokens, refuse_unknown, same_positions, token_ids
from nm_export.onnx.extras import require
from nm_export.onnx.graph_generation import GraphGeneration
from nm_export.onnx.graph_runner import GraphRunner
from nm_export.onnx.providers import Options, Providers
from nm_export.onnx.repository import copy_model, graph_folder, local_folder, upload_folder
from nm_export.onnx.session import concatenates_cache, create_session
from nm_export.onnx.session_attributes import SessionAttributes, check_device, check_dtype

require("optimum", "onnx")
from optimum.modeling_base import OptimizedModel  # noqa: E402


class NMSparseORTModelForCausalLM(SessionAttributes, GraphGeneration, OptimizedModel):
    """A causal language model in ONNX Runtime: the compiled N:M operators where they are installed.

    It takes the place of optimum-onnx's `ORTModelForCausalLM`, and of a transformers model in inference: `generate`
    gives the tokens of the torch model, and each row of a batch what it gives alone, whatever side it is padded on.
    What a graph cannot do (hidden states, attentions, training, embeddings as inputs, packed texts) is refused.
    """

    main_input_name = "input_ids"
    base_model_prefix = "onnx_model"
    input_modalities = "text"
    _is_stateful = False

    def __init__(
        self,
        session: Any,
        config: PreTrainedConfig,
        *,
        folder: Path,
        generation_config: GenerationConfig | None = None,
        path: Path | None = None,
        name_or_path: str | None = None,
    ) -> None:
        """Wrap an open session; `from_pretrained` is the usual way.

        Args:
            session: an onnxruntime.InferenceSession of a graph that `export_onnx` wrote.
            config: the published model's configuration.
            folder: where the model lies, for `save_pretrained`.
            generation_config: defaults of `generate`.
            path: the graph's file; None is model.onnx in the folder `onnx`.
            name_or_path: what the caller loaded; None is the folder.
        """
        super().__init__(session, config)
        self.folder = folder
        self.path = path or folder / "onnx" / "model.onnx"
        self.name_or_path = name_or_path or str(folder)
        text = config.get_text_config()
        self.generation_config = generation_config or GenerationConfig.from_model_config(text)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._cache_class = ConcatenatedCache if concatenates_cache(session) else ORTCache
        self._vocabulary = text.vocab_size
        self.max_positions: int | None = getattr(text, "max_position_embeddings", None)
        schemes = getattr(config, "sparsity", {}).get("schemes", ())
        phased = any(scheme.get("phase", "both") != "both" for scheme in schemes)
        self._runner = GraphRunner(session, self._vocabulary, phased=phased)
        self._returns_cache = True
        self._shapes = self._cache_class.for_session(session).shapes

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        config: PreTrainedConfig | str | Path | None = None,
        *,
        subfolder: str = "onnx",
        file_name: str = "model.onnx",
        revision: str | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        cache_dir: str | Path | None = None,
        token: bool | str | None = None,
        trust_remote_code: bool = False,
        export: bool = False,
        library: bool | None = None,
        provider: str | None = None,
        providers: Providers | None = None,
        provider_options: Options | None = None,
        session_options: Any = None,
        spinning: bool | None = None,
        use_io_binding: bool | None = None,
        use_cache: bool | None = None,
        generation_config: GenerationConfig | None = None,
        device_map: Any = None,
        dtype: Any = None,
    ) -> "NMSparseORTModelForCausalLM":
        """Load a published folder or a repository of the Hub.

        Args:
            model_id: folder with config.json, the folder `onnx` in it, or the name of a repository.
            config: instead of the folder's config.json: a configuration, or a folder that holds one.
            subfolder: where the graph lies within it; "" looks into the folder itself and into `onnx`.
            file_name: the graph's file.
            revision: branch, tag or commit of the repository.
            local_files_only: never go to the network.
            force_download: fetch the repository's files again.
            cache_dir: cache of the Hub's files.
            token: for private repositories.
            trust_remote_code: accepted and without effect: no code of the repository runs.
            export: only False: nm-export exports.
            library: see `create_session`.
            provider: one execution provider, in place of `providers`.
            providers: see `create_session`.
            provider_options: see `create_session`.
            session_options: see `create_session`.
            spinning: see `create_session`.
            use_io_binding: only True and None: all runs are bound to the caller's memory.
            use_cache: what `forward` and `generate` do where they are not told.
            generation_config: defaults of `generate` instead of the folder's.
            device_map: only the CPU: None, "cpu", "auto" or {"": "cpu"}.
            dtype: only float32 (or "auto"), in which graphs compute.

        Raises:
            UserError: no such folder or repository, no exported graph in it, or an argument that cannot be met.
        """
        _refuse_arguments(export, use_io_binding, device_map, dtype)
        if provider is not None and providers is not None:
            raise InputError("Give provider or providers, not both.")
        folder = local_folder(
            model_id,
            subfolder=subfolder,
            revision=revision,
            local_files_only=local_files_only,
            force_download=force_download,
            cache_dir=cache_dir,
            token=token,
        )
        folder, path = graph_folder(folder, subfolder, file_name)
        session = create_session(
            path,
            library=library,
            providers=providers if provider is None else provider,
            provider_options=provider_options,
            session_options=session_options,
            spinning=spinning,
        )
        if not isinstance(config, PreTrainedConfig):
            config = _config(Path(config) if config is not None else folder)
        if generation_config is None and (folder / "generation_config.json").is_file():
            generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        model = cls(
            session,
            config,
            folder=folder,
            generation_config=generation_config,
            path=path,
            name_or_path=str(model_id),
        )
        if use_cache is not None:
            model.generation_config.use_cache = model._returns_cache = use_cache
        return model

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: ORTCache | None = None,
        use_cache: bool | None = None,
        labels: Any = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Compute the logits of every position.

        Args:
            input_ids: `[rows, tokens]`, the tokens that the cache does not hold yet: a tensor or NumPy array of
                integers, or lists. For an array, what is returned is arrays, too.
            attention_mask: `[rows, cached + tokens]`, 1 for tokens and 0 for padding, which may lie on either side.
            past_key_values: the cache that an earlier call returned; it is extended in place.
            use_cache: whether to return the cache; None means yes, unless the model was loaded with `use_cache=False`.
            labels: `[rows, tokens]`, the tokens themselves, -100 where the loss does not count.
            logits_to_keep: so many of the last positions, or positions; 0 is all.
            **kwargs: `position_ids`, where they are the numbers of the tokens that the mask counts; what transformers
                hands over and graphs do not need. Anything that would change the result is refused.

        Returns:
            A `CausalLMOutputWithPast`: logits float32 `[rows, positions, vocabulary]`, those of padding without
            meaning; the loss; the cache.

        Raises:
            InputError: what the graph cannot take, such as more tokens than it has positions.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise InputError("The ONNX graph takes token ids, not inputs_embeds.")
        ids = token_ids(input_ids, self._vocabulary)
        rows, tokens = ids.shape
        cache = self._cache_class.for_session(self.model) if past_key_values is None else past_key_values
        self._check_cache(cache, rows)
        new = None if attention_mask is None else new_tokens(attention_mask, cache, rows, tokens)
        if kwargs:
            same_positions(kwargs.pop("position_ids", None), new, cache, rows, tokens)
            return_dict = kwargs.pop("return_dict", True)
            items = kwargs.pop("num_items_in_batch", None)
            refuse_unknown(kwargs)
        else:
            return_dict, items = True, None
        self._check_length(cache, new, rows, tokens)
        logits = self._runner.run(ids, new, cache)
        loss = None
        if labels is not None:
            loss = causal_loss(logits, labels, new, logits_to_keep, items)
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, kept]
        if use_cache is None:
            use_cache = self._returns_cache
        returned: Any = cache if use_cache else None  # what generate asks of a cache, it has
        if not isinstance(input_ids, Tensor | list | tuple):
            arrays: Any = logits.numpy(), None if loss is None else loss.numpy()
            logits, loss = arrays
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=returned)
        return output if return_dict in (True, None) else output.to_tuple()

    def _check_cache(self, cache: Any, rows: int | None) -> None:
        if type(cache) is not self._cache_class or cache.shapes != self._shapes:
            raise InputError(
                f"past_key_values is a {type(cache).__name__} that does not belong to this graph: give the cache that "
                "an earlier call of this model returned, or none."
            )
        if rows is not None and cache.rows not in (None, rows):
            raise InputError(
                f"past_key_values holds {cache.rows} rows, and input_ids have {rows}: its method "
                "batch_repeat_interleave repeats rows."
            )

    def _check_length(self, cache: ORTCache, new: Tensor | None, rows: int, tokens: int) -> None:
        limit = self.max_positions
        if limit is None or cache.length + tokens <= limit:
            return
        longest = int((cache.counts(rows) + (tokens if new is None else new.sum(dim=1))).max())
        if longest > limit:
            raise InputError(f"The text has {longest} tokens; the model has {limit} positions: shorten it.")

    def save_pretrained(
        self, save_directory: str | Path, *, everything: bool = False, push_to_hub: bool = False, **kwargs: Any
    ) -> str | None:
        """Copy the model, with real files in place of links.

        Args:
            save_directory: folder to copy to.
            everything: copy all that was published: weights for PyTorch, the model card, the records of the export. By
                default what ONNX Runtime, onnxruntime-genai and the tokenizer need.
            push_to_hub: also upload the copy, as `push_to_hub` does.
            **kwargs: arguments of `push_to_hub`.

        Raises:
            UserError: `save_directory` is a file.
        """
        copy_model(self.folder, self.path, Path(save_directory), everything=everything)
        return self.push_to_hub(save_directory, **kwargs) if push_to_hub else None

    def _save_pretrained(self, save_directory: str | Path) -> None:
        copy_model(self.folder, self.path, Path(save_directory))

    def push_to_hub(
        self,
        save_directory: str | Path,
        repository_id: str,
        private: bool | None = None,
        token: bool | str | None = None,
    ) -> str:
        """Upload a folder that `save_pretrained` wrote, as it is; `nm-export publish` checks what it uploads.

        Args:
            save_directory: the folder.
            repository_id: name of the repository, which is made if there is none.
            private: whether a new repository is private.
            token: that of the account.

        Returns:
            Address of the commit.
        """
        return upload_folder(Path(save_directory), repository_id, private=private, token=token)


def _refuse_arguments(export: bool, use_io_binding: bool | None, device_map: Any, dtype: Any) -> None:
    if export:
        raise InputError("export=True: this class opens what `nm-export` (or nm_export.export_onnx) has exported.")
    if use_io_binding is False:
        raise InputError("use_io_binding=False: all runs of this class are bound to the caller's memory; leave it out.")
    for device in device_map.values() if isinstance(device_map, dict) else [device_map]:
        if device not in (None, "auto"):
            check_device(device)
    if dtype != "auto":
        check_dtype(dtype)


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of the published model, not its onnx folder.")
    fields, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    config_class = NMSparseConfig if fields.get("model_type") == NMSparseConfig.model_type else AutoConfig
    return config_class.from_pretrained(folder, local_files_only=True)


# `pipeline` asks this table, which it prints otherwise, whether it knows a class.
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("nm_sparse_onnx", NMSparseORTModelForCausalLM.__name__)
