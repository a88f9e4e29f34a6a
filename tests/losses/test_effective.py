import inspect

import pytest
from pydantic import ValidationError

from jaxkit.losses import LOSSES, effective_weights
from jaxkit.schema.losses import CLASSIFY_LOSSES, DISTILL_LOSSES

SECTIONS = CLASSIFY_LOSSES | DISTILL_LOSSES


def section(name, **fields):
    return SECTIONS[name](name=name, **fields)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (section("cross_entropy"), "1 x CE"),
        (section("cross_entropy", label_smoothing=0.1), "1 x CE(label smoothing 0.1)"),
        (section("label_smoothing"), "1 x CE(label smoothing 0.101)"),
        (section("tfkd_regularization", alpha=0.1, temperature=20, multiplier=100), "1 x CE(label smoothing 0.09995)"),
        (
            section("tfkd_regularization", alpha=0.1, temperature=40, multiplier=50),
            "0.95 x CE(label smoothing 0.05262)",
        ),
        (section("tfkd_regularization", alpha=0.95, temperature=40), "0.0595 x CE(label smoothing 0.1596)"),
        (section("kd"), "0.1 x CE + 0.9 x T²·KL(T=4)"),
        (section("kd", alpha=0.95, temperature=20, reduction="mean"), "0.05 x CE + 0.0095 x T²·KL(T=20)"),
        (section("self_distillation", alpha=0.95, temperature=6, multiplier=50), "0.05 x CE + 0.475 x T²·KL(T=6)"),
    ],
)
def test_the_text_states_the_weights_for_a_hundred_classes(config, text):
    assert str(effective_weights(config, 100)) == text


@pytest.mark.parametrize(
    "config",
    [
        section("cross_entropy"),
        section("label_smoothing"),
        section("kd"),
        section("self_distillation", alpha=0.95, temperature=6, multiplier=50),
        section("tfkd_regularization", alpha=0.1, temperature=20, multiplier=100),
    ],
)
def test_balanced_weights_give_no_warning(config):
    assert effective_weights(config, 100).warnings == ()


@pytest.mark.parametrize(
    ("config", "num_classes", "part"),
    [
        (section("kd", alpha=0.0), 10, "T²·KL(T=4)"),
        (section("kd", alpha=1.0), 10, "CE"),
        (section("kd", alpha=0.6, temperature=20, reduction="mean"), 1000, "T²·KL(T=20)"),
        (section("tfkd_regularization", alpha=0.1, temperature=20), 100, "KL from the hand-made teacher"),
    ],
)
def test_a_part_below_a_hundredth_of_the_sum_is_named(config, num_classes, part):
    (warning,) = effective_weights(config, num_classes).warnings
    assert warning.startswith(f"{part} has weight")


def test_a_sum_far_below_that_of_plain_cross_entropy_is_named():
    (warning,) = effective_weights(section("tfkd_regularization", alpha=0.95, temperature=40), 100).warnings
    assert "add up to 0.0595" in warning
    assert "17 times smaller" in warning


@pytest.mark.parametrize("name", SECTIONS)
def test_the_fields_of_a_section_are_the_arguments_of_its_loss(name):
    fields = {key: field.default for key, field in SECTIONS[name].model_fields.items() if key != "name"}
    for function in LOSSES[name]:
        arguments = inspect.signature(function).parameters.values()
        assert {a.name for a in arguments if a.kind is a.KEYWORD_ONLY} == set(fields)
        assert all(
            a.default == fields[a.name] for a in arguments if a.kind is a.KEYWORD_ONLY and a.default is not a.empty
        )


def test_every_loss_has_a_section():
    assert set(LOSSES) == set(SECTIONS)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "kd", "alpha": 1.1},
        {"name": "kd", "temperature": 0.0},
        {"name": "kd", "reduction": "sum"},
        {"name": "kd", "multiplier": 2.0},
        {"name": "self_distillation", "alpha": 0.5, "temperature": 2.0},
        {"name": "tfkd_regularization", "alpha": 0.5, "temperature": 2.0, "multiplier": 0.0},
        {"name": "cross_entropy", "label_smoothing": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        SECTIONS[fields["name"]](**fields)
