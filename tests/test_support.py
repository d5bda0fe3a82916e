"""The page of what goes together is what the tables say, and what the tables say is what the models do."""

from __future__ import annotations

import pytest

from adaptrain.architectures import architectures
from adaptrain.config.library import library
from adaptrain.errors import UnsupportedError
from adaptrain.reporting.support import VARIANTS, lines, page, sketch
from matrix import ARCHITECTURES, METHODS, adapted

PAGE = library().conf.parent / "docs" / "support.md"


def test_the_page_is_as_it_would_be_written_now():
    assert PAGE.read_text(encoding="utf-8") == page(), "the tables have changed: make support"


def test_every_model_type_has_its_line():
    assert {line.split("`")[1] for line in lines()} == set(architectures())
    assert len(lines()) == len(architectures()) + sum(len(variants) for variants in VARIANTS.values())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_table_promises_what_the_model_has(arch):
    model = adapted(arch)

    def kinds(points):
        return {(p.name, p.kind, p.layer, p.sublayer, p.role, p.causal, p.encoder_decoder) for p in points}

    assert kinds(sketch(model.architecture)) == kinds(model.sites.points)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_page_refuses_the_model_refuses(arch):
    model = adapted(arch)
    promised = sketch(model.architecture)
    for name, config in METHODS.items():
        reasons = list(config.missing(promised))
        refused = ""
        try:
            model.add_adapter("a", config, overwrite_ok=True)
        except UnsupportedError as error:
            refused = str(error)
        assert bool(reasons) == bool(refused), name
        assert not reasons or reasons[0] in refused, name
