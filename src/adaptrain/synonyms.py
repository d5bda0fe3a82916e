"""What other tools call our keys: transformers, PEFT, axolotl, LLaMA-Factory and AdapterHub's `adapters`.

A key that adaptrain does not have is looked up here before the nearest of our own is guessed: `gradient_clipping` is
`trainer.max_grad_norm`, and not the similar `trainer.gradient_checkpointing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Synonym:
    """What a foreign name is here.

    Attributes:
        keys: our dotted keys, the likeliest first; none where adaptrain has no such setting.
        note: where the values differ: what ours mean.
    """

    keys: tuple[str, ...]
    note: str = ""


_BATCH = "batch_size counts the rows of one optimiser step, micro_batch_size those of one forward"
_PRECISION = "it takes auto, fp32 or bf16"
_QUANTIZE = "it takes bnb_4bit, bnb_8bit or ao_int8"
_NAMED_MODEL = "model=NAME takes one that `adaptrain ls models` lists"
_OWN_ROWS = "it takes a hub id, a folder or a file; task=NAME takes a task that `adaptrain ls tasks` lists"
_CHOICE = "write adapter=NAME with a name that `adaptrain ls adapters` lists"

_ROWS: tuple[tuple[str, str, str], ...] = (
    # Optimisation
    ("lr base_lr init_lr max_lr", "trainer.learning_rate", ""),
    ("num_train_epochs num_epochs n_epochs max_epochs train_epochs", "trainer.epochs", ""),
    ("steps num_steps max_train_steps num_train_steps num_training_steps total_steps", "trainer.max_steps", ""),
    (
        "per_device_train_batch_size per_gpu_train_batch_size per_device_batch_size train_micro_batch_size_per_gpu",
        "trainer.batch_size trainer.micro_batch_size",
        _BATCH,
    ),
    ("train_batch_size global_batch_size batchsize bs bsz", "trainer.batch_size", ""),
    (
        "gradient_accumulation_steps accumulate_grad_batches gradient_accumulation grad_accum",
        "trainer.micro_batch_size",
        f"{_BATCH}, and adaptrain accumulates the gradients of as many forwards as that takes",
    ),
    (
        "per_device_eval_batch_size per_gpu_eval_batch_size val_batch_size test_batch_size eval_batchsize",
        "trainer.eval_batch_size",
        "",
    ),
    (
        "warmup_ratio warmup_steps num_warmup_steps warmup_proportion warmup_epochs",
        "trainer.warmup",
        "below 1 it is a fraction of all steps, else a number of steps",
    ),
    (
        "lr_scheduler_type lr_scheduler lr_schedule scheduler scheduler_type",
        "trainer.schedule",
        "it takes linear, cosine or constant",
    ),
    (
        "gradient_clipping gradient_clip_val gradient_clip grad_clip clip_grad_norm clip_grad max_norm clip_norm",
        "trainer.max_grad_norm",
        "",
    ),
    ("wd decay l2", "trainer.weight_decay", ""),
    (
        "optim optimizer optimiser",
        "trainer.adam_beta1 trainer.adam_beta2 trainer.adam_epsilon",
        "the optimiser is AdamW, and these are its settings",
    ),
    ("adam_eps eps epsilon", "trainer.adam_epsilon", ""),
    ("beta1", "trainer.adam_beta1", ""),
    ("beta2", "trainer.adam_beta2", ""),
    ("betas adam_betas", "trainer.adam_beta1 trainer.adam_beta2", ""),
    (
        "evaluation_strategy eval_strategy eval_steps evals_per_epoch eval_freq eval_interval",
        "trainer.eval_every",
        "it counts epochs",
    ),
    (
        "early_stopping_patience early_stopping early_stop early_stopping_rounds",
        "trainer.patience",
        "it counts evaluations without a better score",
    ),
    (
        "load_best_model_at_end save_strategy save_best save_best_only",
        "trainer.keep",
        "it takes best or last: the evaluation whose weights a run ends with",
    ),
    ("fp16 bf16 mixed_precision amp torch_dtype compute_dtype float16 bfloat16 tf32", "trainer.precision", _PRECISION),
    ("use_cpu no_cuda gpu gpus cuda accelerator", "trainer.device", "it takes auto, cpu, mps, cuda or cuda:N"),
    (
        "use_gradient_checkpointing grad_checkpointing activation_checkpointing",
        "trainer.gradient_checkpointing",
        "",
    ),
    ("length_grouping bucket_by_length", "trainer.group_by_length", ""),
    ("adapterdrop skip_layers_probability", "trainer.adapter_drop", "it is a number of layers"),
    ("training training_args training_arguments train_args hparams hyperparameters", "trainer", ""),
    ("random_seed random_state manual_seed data_seed", "seed", ""),
    ("output_dir save_dir out_dir output_path save_path output output_folder", "outputs", ""),
    ("overwrite_output_dir overwrite", "force", ""),
    # The base model
    (
        "model_name_or_path pretrained_model_name_or_path base_model_name_or_path base_model model_name model_id",
        "model.name",
        _NAMED_MODEL,
    ),
    (
        "model_path pretrained_model backbone checkpoint",
        "model.name",
        _NAMED_MODEL,
    ),
    ("model_revision base_model_revision revision_of_model", "model.revision", ""),
    ("trust_remote_code", "model.allow_remote_code", "it takes the hub id whose code may run"),
    (
        "attn_implementation flash_attention flash_attn use_flash_attention use_flash_attention_2 sdp_attention",
        "model.attention",
        "it takes auto, sdpa or eager",
    ),
    (
        "load_in_4bit load_in_8bit quantization quantization_bit quantization_config quantization_method",
        "model.quantize",
        _QUANTIZE,
    ),
    (
        "bnb_4bit_quant_type quantise",
        "model.quantize",
        _QUANTIZE,
    ),
    # The adapter
    ("rank lora_r lora_rank lora_dim", "adapter.r", ""),
    ("lora_alpha scaling_alpha", "adapter.alpha", ""),
    ("lora_dropout adapter_dropout", "adapter.dropout", ""),
    (
        "target_modules lora_target_modules lora_target target_parameters",
        "adapter.targets adapter.attn_matrices",
        "targets takes names such as attention.query or mlp.down, attn_matrices takes q, k, v and o",
    ),
    (
        "lora_target_linear",
        "adapter.targets",
        "[attention.*, mlp.*] takes every linear map of a layer",
    ),
    ("rslora", "adapter.use_rslora", ""),
    ("dora", "adapter.use_dora", "adapter=dora sets it"),
    ("init_lora_weights lora_init pissa_init", "adapter.init_weights", "it takes lora, bert or pissa"),
    ("loraplus_lr_ratio lora_plus_lr_ratio", "adapter.lora_plus_ratio", ""),
    (
        "layers_to_transform lora_layers_to_transform layers_pattern",
        "adapter.leave_out",
        "it names the layers without adapter",
    ),
    (
        "num_virtual_tokens pre_seq_len prefix_len num_prefix_tokens num_prompt_tokens prompt_len",
        "adapter.prefix_length adapter.prompt_length",
        "the first is a key of prefix_tuning, the second of prompt_tuning",
    ),
    ("prefix_projection", "adapter.flat", "flat: false has the projection (an MLP)"),
    ("encoder_hidden_size prefix_hidden_size mid_dim", "adapter.bottleneck_size", ""),
    ("prompt_tuning_init", "adapter.prompt_init", ""),
    ("prompt_tuning_init_text", "adapter.prompt_init_text", ""),
    (
        "adapter_size adapter_dim bottleneck_dim bottleneck adapter_hidden_size adapter_reduction_factor",
        "adapter.reduction_factor",
        "it is the hidden size divided by the size of the bottleneck",
    ),
    ("adapter_act adapter_activation activation activation_function hidden_act", "adapter.non_linearity", ""),
    ("adapter_scaling adapter_scalar", "adapter.scaling", ""),
    (
        "adapter_config adapter_type adapter_method peft peft_type peft_config peft_method finetuning_type lora_config",
        "adapter",
        _CHOICE,
    ),
    (
        "modules_to_save additional_target train_head additional_trainable_modules",
        "",
        "every run trains the head beside the adapter and saves both, so no key is needed",
    ),
    ("bias lora_bias train_bias", "", "the biases of the base model stay frozen"),
    ("fan_in_fan_out", "", "adaptrain sees from the model how its weights lie"),
    # Several adapters
    ("adapter_name_or_path lora_model_dir load_adapter adapter_path", "adapters", "write adapters.NAME.path=FOLDER"),
    ("adapter_setup active_adapters active_adapter", "composition", "such as stack(a, b)"),
    ("adapter_fusion fusion_config adapter_fusion_config", "fusion", "it goes with composition=fuse(a, b)"),
    # The head
    ("classifier_dropout cls_dropout head_dropout", "head.dropout", ""),
    # Rows, roles, labels
    (
        "dataset datasets dataset_name dataset_path dataset_dir data_path data_dir data_files train_file train_data",
        "task.path",
        _OWN_ROWS,
    ),
    ("dataset_config dataset_config_name subset_name config_name", "task.subset", ""),
    ("dataset_revision", "task.revision", ""),
    ("task_name", "task.name", "task=NAME takes a task that `adaptrain ls tasks` lists"),
    ("task_type problem_type", "task.type", "such as classification, tagging or summarisation"),
    ("train_split", "task.splits.train", ""),
    ("validation_split val_split eval_split dev_split", "task.splits.validation", ""),
    ("test_split", "task.splits.test", ""),
    (
        "val_set_size val_size validation_size eval_size test_size validation_split_percentage",
        "task.splits.carve.fraction",
        "task.splits.carve also says which split the rows come from and what the new one is called",
    ),
    (
        "max_seq_length max_seq_len max_sequence_length sequence_len sequence_length seq_len seq_length cutoff_len",
        "data.max_length",
        "",
    ),
    (
        "max_source_length max_input_length model_max_length block_size max_len",
        "data.max_length",
        "",
    ),
    ("doc_stride window_stride", "data.stride", ""),
    ("max_target_len target_max_length max_label_length val_max_target_length", "data.max_target_length", ""),
    ("max_train_samples max_samples num_train_samples train_samples max_train_rows", "data.max_train", ""),
    (
        "max_eval_samples max_val_samples max_predict_samples num_eval_samples max_eval_rows",
        "data.max_eval",
        "",
    ),
    (
        "pad_to_max_length padding pad_to_multiple_of",
        "data.max_length",
        "it only cuts: each batch is padded to its own longest row",
    ),
    ("text_column text_column_name text_field dataset_text_field sentence1_key", "task.columns.text", ""),
    ("text_pair_column sentence2_key", "task.columns.text_pair", ""),
    ("label_column label_column_name label_field labels_column", "task.columns.label", ""),
    ("question_column question_column_name", "task.columns.question", ""),
    ("context_column context_column_name", "task.columns.context", ""),
    ("answer_column answer_column_name", "task.columns.answers", ""),
    ("summary_column target_column response_column field_output", "task.columns.target", ""),
    ("source_column prompt_column field_input", "task.columns.source", ""),
    ("image_column image_column_name", "task.columns.image", ""),
    ("audio_column audio_column_name", "task.columns.audio", ""),
    (
        "num_labels num_classes n_classes label_list label_names class_names id2label",
        "task.labels",
        "it takes the names of the labels in order",
    ),
    ("metric_for_best_model metrics metric_name eval_metric", "task.metric", ""),
    ("source_prefix prompt_template", "task.prompt", "it is a text with {source} in it"),
    ("generation_num_beams beams beam_size", "task.generation.num_beams", ""),
    ("generation_max_length max_generate_length", "task.generation.max_new_tokens", "it counts new tokens only"),
)

SYNONYMS: dict[str, Synonym] = {
    name: Synonym(tuple(keys.split()), note) for names, keys, note in _ROWS for name in names.split()
}
"""Foreign name → what it is here."""


def synonym(name: str) -> Synonym | None:
    """What a name of another tool is here; its case, and dashes for underscores, do not matter."""
    return SYNONYMS.get(name.lower().replace("-", "_"))


def translation(name: str, own: Iterable[str] = (), section: str = "") -> str:
    """`"; in adaptrain it is trainer.learning_rate"` for a name of another tool, else the empty string.

    Args:
        own: last words of the keys of the section or config in which the name was written.
        section: how that section is called; a key of it is then called by its place there.

    >>> translation("lr")
    '; in adaptrain it is trainer.learning_rate'
    """
    entry = synonym(name)
    if entry is None:
        return ""
    inside = [key for key in entry.keys if key.rpartition(".")[2] in own]
    prefix = f"{section}." if section else ""
    keys = [prefix + key.rpartition(".")[2] for key in inside] or list(entry.keys)
    note = f"{'; ' if keys else ''}{entry.note}" if entry.note else ""
    return f"; {'in adaptrain it is ' + ' or '.join(keys) if keys else ''}{note}"
