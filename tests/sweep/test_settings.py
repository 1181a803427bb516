"""What one training can be set to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.errors import RequestError
from pipeline.sweep.settings import KEYS, Choice, mistakes, settings_of


def test_every_default_is_allowed_with_every_choice_of_another_key() -> None:
    for key, choice in KEYS.items():
        for word in choice.allowed.words if isinstance(choice.allowed, Choice) else ():
            settings = settings_of({key: word})
            stated = settings.as_dict()
            assert mistakes(stated) == [] and stated[key] == word
            assert settings_of(stated) == settings


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"momentum": 1}, "momentum: expected a number from 0 to below 1, found '1'"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0 to 100, found '0'"),
        ({"learning_rate": math.nan}, "found 'nan'"),
        ({"learning_rate": math.inf}, "found 'inf'"),
        ({"learning_rate": "0.1"}, "found '0.1'"),
        ({"steps": True}, "steps: expected a whole number from 1 to 10,000,000, found 'True'"),
        ({"steps": 10.0}, "found '10.0'"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 2,147,483,647"),
        ({"optimizer": "Adam"}, "optimizer: expected one of sgd, adamw, muon, found 'Adam'"),
        ({"optimizer": ["sgd"]}, "optimizer: expected one of"),
        ({"lerning_rate": 1}, "is learning_rate meant?"),
        ({"x" * 5000: 1}, "there are network, width"),
        ({"a\x1b[2J": 1}, r"\x1b"),
        ({"steps": 1, "epochs": 1}, "steps, epochs: expected one of them"),
        ({"network": "vit", "width": 20}, "width: expected a multiple of 16"),
        ({"network": "cnn", "optimizer": "muon"}, "optimizer: expected sgd or adamw"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(stated: dict[str, Any], said: str) -> None:
    (line,) = mistakes(stated)
    assert said in line and line.isprintable() and len(line) < 500
    with pytest.raises(RequestError):
        settings_of(stated)


def test_everything_that_is_wrong_is_named() -> None:
    wrong = {"width": 0, "depth": "2", "warmup": 1.0, "nothing": 1, "steps": 5, "epochs": 5.0}
    lines = mistakes(wrong)
    assert [line.partition(":")[0] for line in lines] == [
        "width",
        "depth",
        "warmup",
        "'nothing'",
        "steps, epochs",
    ]


def test_a_whole_number_is_a_number_and_what_is_not_stated_depends_on_what_is() -> None:
    settings = settings_of({"learning_rate": 1, "network": "lm", "optimizer": "adamw"})
    assert settings.learning_rate == 1.0 and isinstance(settings.learning_rate, float)
    assert (settings.weight_decay, settings.epochs, settings.width) == (0.1, 1.0, 32)
    assert settings_of({"steps": 7}).epochs is None
    assert KEYS["learning_rate"].default_text == "0.05 with sgd, 0.003 with adamw, 0.003 with muon"
