"""Hyper-parameter search with Optuna on any data set of the package.

The eight of the original recipe: batch size, learning rate, patience of early stopping, number of
radial basis functions, of interactions and of channels, cutoff, patience of the plateau schedule;
and the schedule itself, the beta of the Huber loss and the weight decay. The first trial is the
default configuration. The objective is the validation error of the magnitude (MAE in debye) of the
epoch with the best validation loss; the loss itself is of another size for each beta. Poor trials
are pruned by their least error so far, failed ones are recorded and passed over.

``RUN/study.db`` holds the trials; ``--storage`` is another place, which several processes and
machines can share. The same command goes on where it was stopped. It writes
``RUN/best.json``, for ``dipolegnn train --config``, ``RUN/trials.csv`` and pictures.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import optuna
import pytorch_lightning as pl
import torch
import tyro
from matplotlib.axes import Axes
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from optuna.visualization import matplotlib as plots
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table

from dipolegnn.config import ModelConfig, TrainConfig
from dipolegnn.data import ConformerDataset, Split
from dipolegnn.nn import build_model
from dipolegnn.training import fit

PROBLEM = "problem"
"""Attribute and column with the reason why a trial failed."""

VALUE = "validation MAE (D)"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search for hyper-parameters."""

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of a data set, with a split."""
    output: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Folder of the study."""
    trials: int = 10
    """Trials of this call, in addition to those of earlier calls."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="MINUTES", help_behavior_hint="")] = (
        None
    )
    """Minutes after which no further trial starts."""
    storage: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """Where the trials are kept: any URL that SQLAlchemy knows, redis://..., or a file ending in
    .log, a journal that machines with a common file system can share; left out: RUN/study.db
    (SQLite). A trial whose process was killed is found, recorded and tried once more where the
    storage is SQL; elsewhere it stays there as running."""
    max_epochs: int = 30
    """Passes over the training molecules per trial at most."""
    molecules: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")
    ] = None
    """Number of training molecules to use, the first of the training part."""
    seed: int = 0
    """Seed of the sampler and of every trial."""
    fast: bool = False
    """Quick test with tiny networks."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the search."""
    options = tyro.cli(Options, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)  # a file or a pipe has no width to keep to
    dataset = ConformerDataset(options.data)
    split = dataset.split()
    split = Split(split.train[: options.molecules], split.val, split.test)
    options.output.mkdir(parents=True, exist_ok=True)
    url = options.storage or f"sqlite:///{(options.output / 'study.db').resolve()}"
    study = open_study(url, default_parameters(), values_of(dataset, options), options.seed)
    if not study.trials and (options.output / "trials").exists():
        raise SystemExit(
            f"{options.output / 'trials'} holds trials of a study that is not in {url}. Choose "
            "another --output, or remove them."
        )
    earlier = sum(trial.state.is_finished() for trial in study.trials)
    console.print(f"{split} structures; {earlier} earlier trials", highlight=False)

    def say(study: Study, trial: FrozenTrial) -> None:
        value = "–" if trial.value is None else f"{trial.value:.4f} D"
        console.print(
            f"trial {trial.number}: {trial.state.name.lower()}, {value}, "
            f"{', '.join(f'{k} {shown(v)}' for k, v in trial.params.items())}",
            highlight=False,
            soft_wrap=True,
        )

    try:
        with console.status("") as status:  # on a terminal: where the trial is
            study.optimize(
                objective(dataset, split, options, status.update),
                n_trials=options.trials,
                timeout=None if options.time_limit is None else 60 * options.time_limit,
                callbacks=[say],
                # Recorded as failed, with what happened; a stop by the user ends the search.
                catch=(Exception,),
            )
    finally:
        write(study, options, console)


def values_of(dataset: ConformerDataset, options: Options) -> dict[str, object]:
    """Settings besides the parameters on which the value of a trial depends."""
    card = dataset.card
    return {
        "data": str(options.data) if card is None else card.sha256,
        "molecules": options.molecules,
        "max_epochs": options.max_epochs,
        "seed": options.seed,
        "fast": options.fast,
    }


def default_parameters() -> dict[str, object]:
    """The values for which :func:`suggest` returns the default configuration."""
    model, train = ModelConfig(), TrainConfig()
    return {
        "n_atom_basis": model.hidden_channels,
        "n_interactions": model.num_interactions,
        "n_rbf": model.num_rbf,
        "cutoff": model.cutoff,
        "bs": train.batch_size,
        "lr": train.lr,
        "huber_beta": train.huber_beta,
        "weight_decay": train.weight_decay,
        "scheduler": train.scheduler,
    }


def suggest(trial: Trial, options: Options) -> tuple[ModelConfig, TrainConfig]:
    """A model and a recipe."""
    model = ModelConfig(
        hidden_channels=trial.suggest_categorical("n_atom_basis", [64, 96, 128, 192]),
        num_interactions=trial.suggest_int("n_interactions", 2, 7),
        num_rbf=trial.suggest_int("n_rbf", 10, 40),
        cutoff=trial.suggest_float("cutoff", 3.0, 8.0, step=0.5),
    )
    train = TrainConfig(
        max_epochs=options.max_epochs,
        batch_size=trial.suggest_categorical("bs", [32, 64, 128, 256, 400]),
        lr=trial.suggest_float("lr", 1e-4, 5e-3, log=True),
        huber_beta=trial.suggest_float("huber_beta", 0.01, 0.3, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
        seed=options.seed,
    )
    if trial.suggest_categorical("scheduler", ["onecycle", "plateau"]) == "plateau":
        train = replace(
            train,
            scheduler="plateau",
            plateau_patience=trial.suggest_int("pat2", 2, 15),
            early_stopping_patience=trial.suggest_int("patience", 5, 40),
        )
    if options.fast:
        model = replace(model, hidden_channels=8, num_interactions=1)
    return model, train


def objective(
    dataset: ConformerDataset, split: Split, options: Options, tell: Callable[[str], None]
) -> Callable[[Trial], float]:
    """Objective of a trial: the validation MAE of the best epoch, in debye."""

    def run(trial: Trial) -> float:
        model, train = suggest(trial, options)
        tell(f"trial {trial.number}: first epoch")
        torch.manual_seed(train.seed)
        try:
            result = fit(
                build_model(model),
                dataset,
                split,
                train,
                options.output / "trials" / f"{trial.number:04d}",
                progress=False,
                callbacks=[Pruning(trial, tell)],
            )
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            trial.set_user_attr(PROBLEM, " ".join(f"{type(error).__name__}: {error}".split()))
            raise
        return result.metrics["val"]["dipole_mae"]

    return run


class Pruning(Callback):
    """Tells Optuna the validation MAE of each epoch, and stops where Optuna has seen enough.

    Args:
        trial: The trial.
        tell: Shows how far it is.
    """

    def __init__(self, trial: Trial, tell: Callable[[str], None]) -> None:
        self.trial = trial
        self.tell = tell
        self.best = math.inf

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the least error so far.

        Raises:
            TrialPruned: If other trials were better by this epoch.
        """
        self.best = min(self.best, float(trainer.callback_metrics["val/dipole_mae"]))
        done = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.tell(f"trial {self.trial.number}: {done}, least validation MAE {self.best:.4f} D")
        self.trial.report(self.best, trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"after epoch {trainer.current_epoch + 1}")


def write(study: Study, options: Options, console: Console) -> None:
    """The table of the trials, the best configuration, pictures."""
    names = sorted({name for trial in study.trials for name in trial.params})
    table = Table(title="Trials; value: validation MAE in debye", title_justify="left")
    header = ["number", "value", "start", "end", "state", *names, PROBLEM]
    for column in header:
        table.add_column(column, justify="right", overflow="fold")
    rows = [
        [
            str(trial.number),
            "" if trial.value is None else f"{trial.value:.4f}",
            *("" if at is None else f"{at:%m-%d %H:%M}" for at in _times(trial)),
            trial.state.name.lower(),
            *(shown(trial.params.get(name, "")) for name in names),
            str(trial.user_attrs.get(PROBLEM, "")),
        ]
        for trial in study.trials
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    with (options.output / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        console.print("No trial is complete yet.")
        return
    best = study.best_trial
    model, train = suggest(best, options)  # type: ignore[arg-type]
    content = {"model": asdict(model), "train": asdict(train)}
    path = options.output / "best.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print(f"best: trial {best.number}, {best.value:.4f} D; dipolegnn train --config {path}")
    pictures: dict[str, Callable[[], Axes]] = {
        "history": lambda: plots.plot_optimization_history(study, target_name=VALUE),
        "parallel_coordinates": lambda: plots.plot_parallel_coordinate(study, target_name=VALUE),
    }
    if len({trial.value for trial in complete}) > 2:  # importance needs at least three values
        pictures["importance"] = lambda: plots.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target_name=VALUE
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A parameter that only a few trials had, as the table shows.
        warnings.filterwarnings("ignore", message="Some regimes for parameter")
        # A parameter that was the same in all trials.
        warnings.filterwarnings("ignore", message="Attempting to set identical low and high")
        for name, draw in pictures.items():
            figure = draw().get_figure(root=True)
            assert figure is not None
            if name == "parallel_coordinates":  # each axis has numbers beside it
                figure.set_size_inches(2.0 + 1.3 * len(best.params), 5.0)
            figure.savefig(options.output / f"{name}.png", dpi=120, bbox_inches="tight")


def _times(trial: FrozenTrial) -> tuple[object, object]:
    return trial.datetime_start, trial.datetime_complete


def shown(value: object) -> str:
    """A hyper-parameter as a short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


STUDY = "dipolegnn"

HEARTBEAT_S = 30
"""A running trial shows this often that it lives; one that has not for three times as long is
recorded as failed by whoever starts the next one, and tried once more. (Storages of SQL only.)"""

OF = "of"
"""Attribute of the study: the settings on which its values depend besides the parameters."""


def open_study(
    storage: str, first: Mapping[str, object], of: Mapping[str, object], seed: int
) -> Study:
    """The study in a storage, made at first use.

    Args:
        storage: ``redis://...``, a file ``....log`` (Optuna's journal), or what SQLAlchemy knows.
        first: Parameters of the first trial.
        of: What the values depend on besides the parameters.
        seed: Seed of the sampler.

    Raises:
        SystemExit: The study there is of something else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=STUDY,
            storage=storage_of(storage),
            sampler=NumberedSampler(seed, first),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=5),
            load_if_exists=True,
        )
    there = study.user_attrs.get(OF, of if not study.trials else {})
    differ = [name for name in {**there, **of} if there.get(name) != of.get(name)]
    if differ:
        details = "; ".join(
            f"{name}: {there.get(name)} there, {of.get(name)} now" for name in differ
        )
        raise SystemExit(
            f"The study in {storage} is of something else ({details}), and its values cannot be "
            "compared with those of new trials. Choose another --output or --storage."
        )
    study.set_user_attr(OF, dict(of))
    return study


def storage_of(url: str) -> BaseStorage:
    """The storage at an address."""
    if url.startswith(("redis://", "rediss://", "unix://")):
        return JournalStorage(JournalRedisBackend(url))
    if "://" not in url and url.endswith(".log"):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(url))
    return RDBStorage(
        url,
        heartbeat_interval=HEARTBEAT_S,
        grace_period=3 * HEARTBEAT_S,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=1),
    )


class NumberedSampler(BaseSampler):
    """TPE with a seed for each trial, which its number gives.

    Processes that search together have the same seed and different numbers, so that none repeats
    what another one draws; nor does a study that goes on repeat itself.

    Args:
        seed: Seed of the study.
        first: Parameters of the first trial.
    """

    def __init__(self, seed: int, first: Mapping[str, object]) -> None:
        self._seed = seed
        self._first = dict(first)
        self._inner: BaseSampler = TPESampler(seed=seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Takes the seed of this trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Running trials count as poor, so that parallel processes do not sample near them.
            self._inner = TPESampler(seed=self._seed + trial.number, constant_liar=True)
            if trial.number == 0:
                self._inner = PartialFixedSampler(self._first, self._inner)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As TPE."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As TPE."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As TPE."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As TPE."""
        self._inner.after_trial(study, trial, state, values)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"\n{str(interrupt) or 'Interrupted.'}") from None
