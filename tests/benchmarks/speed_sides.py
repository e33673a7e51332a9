"""The sides of the speed benchmark as processes: `python -m tests.benchmarks.speed_sides SIDE.json`.

All train the same network on the same global batches, in the same precision, with the same optimizer and schedule, and
keep apart the documents of a packed sequence. `plain` and `deepspeed` have what ours has: the head on targets alone,
attention within documents, and the allocator's setting. `trainer` is what Hugging Face's `Trainer` does with the same
network by itself, with the fastest attention that transformers has for it; `shipped` is the same with transformers' own
choices for it: SDPA, and in a GPT-2 `gelu_new`.

The environment has RANK and WORLD_SIZE, as torchrun sets them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.pretraining.batches import Batch, make_batch, make_objective
from components.pretraining.config import PretrainConfig, micro_batch_size
from components.pretraining.engine.cpu import reuse_freed_memory
from components.pretraining.engine.ds_config import deepspeed_config
from components.pretraining.engine.engine import TrainingEngine, import_deepspeed
from components.pretraining.engine.schedule import learning_rate
from components.pretraining.loop import train
from components.pretraining.networks.models import TargetLoss, build_model
from components.pretraining.notice import Notice
from components.pretraining.sampler import Sampler
from components.tokenization.shards import TokenShards
from tests.benchmarks.ranks import training_job
from tests.benchmarks.turns import Turn, TurnSink
from tests.components.pretraining.plain_loop import plain_loop

IGNORED = -100
"""The label that transformers' losses leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one side is told."""

    kind: str
    config: PretrainConfig
    data: Path
    """Has `token_shards/` and `tokenizer/`."""
    work: Path
    turn: Turn


class Batches:
    """The micro batches of any step, for one rank."""

    def __init__(self, config: PretrainConfig, data: Path, rank: int, world_size: int, *, with_mask: bool) -> None:
        self.with_mask = with_mask
        self.shards = TokenShards(data / "token_shards", "train")
        self.objective = make_objective(config, self.shards, data / "tokenizer")
        self.sampler = Sampler(
            num_sequences=len(self.shards), global_batch_size=config.global_batch_size, seed=config.seed
        )
        self.share = config.global_batch_size // world_size
        self.first = rank * self.share
        self.micro = micro_batch_size(config, world_size)

    def step(self, step: int) -> list[Batch]:
        """Those of a step."""
        indices_G, epochs_G = self.sampler.global_batch(step)
        starts = range(self.first, self.first + self.share, self.micro)
        return [
            make_batch(
                self.shards,
                self.objective,
                indices_G[at : at + self.micro],
                epochs_G[at : at + self.micro],
                with_mask=self.with_mask,
            )
            for at in starts
        ]


def language_model(config: PretrainConfig, data: Path) -> Any:
    """The network with random weights."""
    index = TokenShards(data / "token_shards", "train").index
    special = {"pad": index.pad_token_id, "bos": index.bos_token_id, "eos": index.eos_token_id}
    return build_model(config, index.vocab_size, special)


def plain(side: Side) -> None:
    """(a) One process, torch alone."""
    reuse_freed_memory()
    for step, _ in enumerate(plain_loop(side.config, side.data), start=1):
        if step % side.config.log_every_steps == 0:
            side.turn.wait(step)


def bare_deepspeed(side: Side) -> None:
    """(d) DeepSpeed set up as ours is, and nothing around it: no counts, no logs, no checks of the loss."""
    rank, world_size = _join()
    engine = TrainingEngine(TargetLoss(language_model(side.config, side.data)), side.config, world_size)
    batches = Batches(side.config, side.data, rank, world_size, with_mask=engine.reads_masks)
    num_targets = sum(batch.num_targets_K[0] for batch in batches.step(0)) * world_size
    weights_K = torch.tensor([1.0 / num_targets])

    def step(number: int) -> None:
        engine.set_learning_rate(learning_rate(side.config, number))
        for batch in batches.step(number):
            engine.accumulate(batch.to(engine.device), weights_K)
        engine.update()

    _turns(side, step)


def ours(side: Side) -> None:
    """(c) without Ray and without MLflow: our loop on a gloo process group."""
    _join()
    sink = TurnSink(turn=side.turn)
    train(training_job(side.config, side.data, side.work, sink), Notice())


def shipped(side: Side) -> None:
    """(b) with the network as transformers makes it."""
    from transformers.activations import GELUActivation, NewGELUActivation

    model = language_model(side.config, side.data)
    model.set_attn_implementation("sdpa")
    if side.config.architecture == "gpt2":
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, GELUActivation):
                    setattr(module, name, NewGELUActivation())
    _by_trainer(side, model)


def trainer(side: Side) -> None:
    """(b) Hugging Face `Trainer` with the same DeepSpeed config."""
    model = language_model(side.config, side.data)
    model.set_attn_implementation("eager")  # on a CPU the fastest of transformers' own
    _by_trainer(side, model)


def _by_trainer(side: Side, model: Any) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    world_size = int(os.environ["WORLD_SIZE"])
    import_deepspeed()
    config = side.config
    told = deepspeed_config(config, world_size, sum(weight.numel() for weight in model.parameters()))
    arguments = TrainingArguments(
        output_dir=str(side.work),
        max_steps=config.steps,
        per_device_train_batch_size=told["train_micro_batch_size_per_gpu"],
        gradient_accumulation_steps=told["gradient_accumulation_steps"],
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.num_warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        adam_epsilon=config.epsilon,
        max_grad_norm=config.gradient_clipping or 0.0,
        optim="adamw_torch_fused",
        bf16=config.precision == "bf16",
        use_cpu=True,
        ddp_backend="gloo",
        deepspeed={name: value for name, value in told.items() if value is not None},
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    every = config.log_every_steps

    class TakesTurns(TrainerCallback):
        """A turn each `every` steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step % every == 0:
                _end_turn(side, state.global_step)

    rows = Rows(config, side.data, world_size, model.dtype)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[TakesTurns()]).train()


class Rows(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Rows of all ranks in the order in which `Trainer` deals micro batches to ranks: in turn."""

    def __init__(self, config: PretrainConfig, data: Path, world_size: int, dtype: torch.dtype) -> None:
        self.parts = [Batches(config, data, rank, world_size, with_mask=True) for rank in range(world_size)]
        self.dtype = torch.bfloat16 if config.precision == "bf16" else dtype
        self.steps = config.steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self.steps):
            for batches in zip(*(part.step(step) for part in self.parts), strict=True):
                for batch in batches:
                    yield from self._rows(batch)

    def _rows(self, batch: Batch) -> Iterator[dict[str, torch.Tensor]]:
        """The loss of transformers shifts labels itself: the label of a target stands one position later."""
        length = batch.input_ids_BL.shape[1]
        labels = torch.full((batch.input_ids_BL.numel() + 1,), IGNORED)
        labels[batch.target_positions_T + 1] = batch.target_ids_T
        labels_BL = labels[:-1].view(-1, length)
        masks = torch.where(batch.attention_B1LL, 0.0, -1e4).to(self.dtype)
        for number, ids_L in enumerate(batch.input_ids_BL):
            yield {
                "input_ids": ids_L,
                "position_ids": batch.positions_BL[number],
                "attention_mask": masks[number],
                "labels": labels_BL[number],
            }


def _turns(side: Side, step: Callable[[int], object]) -> None:
    """Steps for ever, a turn each `log_every_steps`."""
    for number in range(side.config.steps):
        step(number)
        if (number + 1) % side.config.log_every_steps == 0:
            _end_turn(side, number + 1)


def _end_turn(side: Side, step: int) -> None:
    """Rank 0 waits for the next turn, and the others for it: else they would run the next step up to its first sum
    over the ranks while another side is measured, and find it done in their own turn."""
    if dist.get_rank() == 0:
        side.turn.wait(step)
    dist.barrier()


def _join() -> tuple[int, int]:
    dist.init_process_group("gloo")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    return dist.get_rank(), dist.get_world_size()


SIDES: Mapping[str, Callable[[Side], None]] = {
    "plain": plain,
    "deepspeed": bare_deepspeed,
    "trainer": trainer,
    "shipped": shipped,
    "ours": ours,
}


def main(path: str) -> None:
    """Runs one rank of a side."""
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    config = PretrainConfig.model_validate(told["config"])
    torch.set_num_threads(config.cluster.threads_per_worker)
    turn = Turn(address=told["address"], side=told["name"])
    SIDES[told["kind"]](
        Side(kind=told["kind"], config=config, data=Path(told["data"]), work=Path(told["work"]), turn=turn)
    )


if __name__ == "__main__":
    main(sys.argv[1])
