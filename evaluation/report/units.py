"""The models of a comparison on volumes, eyes and patients."""

from dataclasses import replace

from dino_oct.scores.units import ByUnit, Grouping, compare_units
from evaluation.inputs.steps import Arrays, digest
from evaluation.protocols.linear import pool_features
from evaluation.report.answers import Answers, features_of
from evaluation.report.steps import Setting


def judge_units(answers: dict[str, Answers], shared: Setting) -> dict[str, ByUnit]:
    """Unit → its results: model → protocol, and differences of the first model that has a protocol to the others."""
    groupings, options = shared.data.groupings("test"), shared.options

    def pool(key: str, of_unit: dict[str, Grouping]) -> Arrays | None:
        """Attention pooling of a model's features, as ``evaluation/linear.py`` fits it."""
        model = answers[key].model

        def make() -> Arrays:
            return pool_features(features_of(model), of_unit, len(shared.class_names), options.seed) or {}

        groups = {name: digest(grouped.unit_of_scan, grouped.units.labels) for name, grouped in of_unit.items()}
        return model.steps.arrays("attention pooling", make, groups=groups, seed=options.seed) or None

    results: dict[str, ByUnit] = {}
    for protocol in dict.fromkeys(name for of_model in answers.values() for name in of_model.by_protocol):
        scores = {
            key: {protocol: {"queries": of_model.by_protocol[protocol], "val": of_model.on_validation[protocol]}}
            for key, of_model in answers.items()
            if protocol in of_model.by_protocol
        }
        by_unit = compare_units(
            scores,
            groupings,
            shared.set_of("train"),
            shared.class_names,
            bootstrap=options.bootstrap,
            seed=options.seed,
            **({"pool": pool} if protocol == "linear" else {}),
        )
        for unit, of_unit in by_unit.items():
            results[unit] = _joined(results[unit], of_unit) if unit in results else of_unit
    return results


def _joined(first: ByUnit, other: ByUnit) -> ByUnit:
    """The same units by more protocols."""
    rows, differences = (
        {name: {**a.get(name, {}), **b.get(name, {})} for name in dict.fromkeys([*a, *b])}
        for a, b in ((first.rows, other.rows), (first.differences, other.differences))
    )
    return replace(first, rows=rows, differences=differences)
