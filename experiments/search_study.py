"""The Optuna study of ``optimize.py``: where it is kept, what it is of, how it draws."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

STUDY = "dipolegnn"

HEARTBEAT_S = 30
"""A running trial shows this often that it lives; one that has not for three times as long is
recorded as failed by whoever starts the next one, and tried once more. (Storages of SQL only.)"""

OF = "of"
"""Attribute of the study that says what its values are of."""


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
    """The storage that an address means."""
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
            # Running trials count as bad ones: others are not to look right beside them.
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
