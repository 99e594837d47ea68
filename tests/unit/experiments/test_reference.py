"""The reference of fields is complete: every field of every configuration is explained."""

import pytest

from gcp_jax.experiments import reference

SECTIONS = {f"{section.prefix}{section.title}": section for section in reference.all_sections()}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_field_is_explained(section):
    assert section.rows
    assert [row.name for row in section.rows if not row.doc.strip()] == []


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_table_has_a_line_for_each_field(section):
    lines = reference.markdown(section).splitlines()
    assert len(lines) == len(section.rows) + 2
    assert len({line.count(" | ") for line in lines}) == 1
