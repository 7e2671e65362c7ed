"""transformers: follow the noise scale of a Trainer's run on Python's own sources, then compare two batch sizes."""

import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import batchscope as bs
from batchscope.integrations.transformers import BatchscopeTrainerCallback, workload_from_trainer

LENGTH = 32
text = Path(tempfile.__file__).read_bytes()
tokens = torch.tensor([min(byte, 127) for byte in text])
rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
examples = [{"input_ids": row, "labels": row} for row in rows]


def model() -> GPT2LMHeadModel:
    sizes = {"vocab_size": 128, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


set_seed(0)
callback = BatchscopeTrainerCallback(every=2)  # without every: as often as 3% of the time allow
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        max_steps=30,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    held_out = len(examples) // 5
    trainer = Trainer(
        model_init=model, args=arguments, train_dataset=examples[held_out:], eval_dataset=examples[:held_out]
    )
    callback.attach(trainer)
    trainer.train()
    print(callback.noise)
    workload = workload_from_trainer(trainer)
    print(workload.batch_size, workload.learning_rate)
    print(bs.compare(workload, [(8, 16), (32, 4)], seeds=2, learning_rate="rescaled").conclusion)
