"""Variants: one grammar, one fingerprint per name."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.builder import build
from avbench.manifests.spec import load_spec
from avbench.manifests.variant import by_hash, parse, write_steps
from avbench.types import UsageError

TEN = (10,) * 10


@pytest.mark.parametrize(
    ("options", "sizes", "canonical"),
    [
        ("steps=20", (5,) * 20, "steps=20"),
        ("steps=50+5x10", (50, *[10] * 5), "steps=50+5x10"),
        ("steps=50+10+10+3x10", (50, *[10] * 5), "steps=50+5x10"),
        ("first=50", (50, *[10] * 5), "steps=50+5x10"),
        ("first=50,steps=6", (50, *[10] * 5), "steps=50+5x10"),
        ("steps=6,first=40", (40, *[12] * 5), "steps=40+5x12"),
        ("first=50,steps=2", (50, 50), "steps=2"),
        ("steps=1x90+10x1", (90, *[1] * 10), "steps=90+10x1"),
        ("steps=100", (1,) * 100, "steps=100"),
        ("steps=1", (100,), "steps=1"),
        ("steps=10", TEN, ""),
        ("steps=10x10", TEN, ""),
        ("first=10", TEN, ""),
        ("seed=3", TEN, "seed=3"),
        ("seed=003", TEN, "seed=3"),
        ("steps=20,seed=0", (5,) * 20, "seed=0,steps=20"),
        ("order=alphabetical,steps=20", (5,) * 20, "order=alphabetical,steps=20"),
    ],
)
def test_options_and_their_canonical_form(options, sizes, canonical):
    variant = parse("b", options, TEN)
    assert (variant.classes_per_step, variant.text) == (sizes, canonical)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=200", "there must be 1 to 100"),
        ("steps=0", "there must be 1 to 100"),
        (
            "steps=7",
            "100 classes do not make 7 equal steps: write their sizes, such as steps=16\\+6x14",
        ),
        ("first=50,steps=8", "50 classes do not make 7 equal steps: write .* steps=50\\+8\\+6x7"),
        ("first=50,steps=1", "there must be 1 to 100"),
        ("steps=50+5x11", "that is 105 classes, but there are 100"),
        ("steps=50+", "write their number, or their sizes"),
        ("steps=x10", "write their number, or their sizes"),
        ("steps=0x10+100", "not possible with 100 classes"),
        ("steps=100+0", "not possible with 100 classes"),
        ("steps=999999x999999", "not possible with 100 classes"),
        ("steps=999999999999x1", "write their number"),
        ("steps=1٣", "whole number"),
        ("first=100", "must leave some of 100"),
        ("first=0", "must leave some of 100"),
        ("first=33", "give steps as well"),
        ("first=50,steps=50+5x10", "leave out first"),
        ("seed=-1", "whole number"),
        ("seed=1.5", "whole number"),
        ("seed=99999999999", "whole number"),
        ("seed=", "give seed=VALUE"),
        ("seed", "give seed=VALUE"),
        ("seed=1,seed=1", "once"),
        ("seed=1,order=alphabetical", "not both"),
        ("order=random", "order=alphabetical, or seed=3"),
        ("step=20", "did you mean steps"),
        ("", "unknown option"),
        ("seed=1,", "unknown option"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse("b", options, TEN)
    assert str(caught.value).startswith(f"b:{options}: ")
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_any_steps_can_be_written_and_read(sizes):
    text = write_steps(sizes)
    assert parse("b", f"steps={text}", (sum(sizes),)).classes_per_step == tuple(sizes)


@given(st.text(alphabet="sedtpirorlhabc=,+x0123456789 -", max_size=30))
def test_whatever_is_typed_is_a_variant_or_one_line(options):
    try:
        variant = parse("b", options, TEN)
    except UsageError:
        return  # anything else would be a traceback
    assert sum(variant.classes_per_step) == 100
    if variant.text:
        assert parse("b", variant.text, TEN) == variant


def test_order_by_hash_is_its_definition():
    keys = ["b", "a", "é", "a b"]
    digests = {k: hashlib.sha256(b"7\n" + k.encode("utf-8")).hexdigest() for k in keys}
    assert by_hash(7, keys) == sorted(keys, key=digests.__getitem__)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("ave-ci", "578eb4f720b48f34d90b67787149b6859f6a2edda913ae19a34292da60c80bb6"),
        ("ks-ci", "c7b7ee4a3632dfb3b1c98ba40646f8de2e667f0c3e95a9c76fea17412e1f4d7a"),
        ("vs100-ci", "94d44ae8bcf7b69bcc2fbf7ecd579935b17a81a4c6344004784a4cff3d1dec72"),
        ("vs100-ci-clean", "9145c50623f6b1a22ca5ceb3c59faaa311c8007724a59690d01678d11b841b05"),
        ("toy-ci", "50ec385f5e091eaff29e52aa1ac776073b7d7e2b54020ce5f820eb17fdf097d8"),
        ("ave-ci:seed=3", "cae3359e967296d816db9b821b7b243ad1ab7be6c09aae930775e19e6597e544"),
        (
            "vs100-ci:steps=50+5x10,seed=3",
            "029bec5bd32bfa9a4996adf0c6d380ea12aeb92ae01fda7368bbc7ff9c5ef5ee",
        ),
        (
            "ks-ci:order=alphabetical",
            "714cffa83d98309a66ae7ed043923c1cb27430208c1311acbd1a21361d3e27a9",
        ),
    ],
)
def test_fingerprints_are_pinned(name, fingerprint):
    """On every platform and with every version of a library: published results name them."""
    benchmark = Benchmark.load(name)
    assert benchmark.manifest.fingerprint == fingerprint
    assert build(benchmark.spec).fingerprint == fingerprint


def test_a_variant_keeps_its_clips_and_moves_their_classes():
    base, variant = Benchmark.load("ave-ci"), Benchmark.load("ave-ci:seed=3,steps=7x4")
    assert variant.name == "ave-ci:seed=3,steps=7"
    assert variant.manifest.name == variant.name
    assert variant.manifest.seed == 3
    assert variant.manifest.labels == tuple(by_hash(3, base.manifest.labels))
    assert variant.manifest.classes_per_step == variant.spec.classes_per_step == (4,) * 7
    columns = ["clip_id", "youtube_id", "start_s", "end_s", "label", "split", "source_split"]
    tables = [b.manifest.table.select(columns).sort_by("clip_id") for b in (base, variant)]
    assert tables[0].equals(tables[1])


def test_alphabetical_order_looks_past_capitals(tiny, tmp_path):
    labels = Benchmark.load("ave-ci:order=alphabetical").manifest.labels
    assert list(labels) == sorted(labels, key=str.casefold)
    assert Benchmark.load("ave-ci:order=alphabetical").manifest.seed is None


def test_other_ways_of_writing_give_the_same_benchmark():
    assert Benchmark.load("vs100-ci:steps=10") == Benchmark.load("vs100-ci")
    one, two = (Benchmark.load(f"vs100-ci:{o}") for o in ("first=50", "steps=50+2x10+3x10"))
    assert one.name == two.name == "vs100-ci:steps=50+5x10"
    assert one.manifest.fingerprint == two.manifest.fingerprint


def test_variants_share_clips_features_and_recipes_of_their_benchmark(tiny):
    own = tiny()
    variant = Benchmark.load(f"{own.spec.path}:seed=3")
    assert variant.name == "tiny:seed=3"
    assert variant.argument == f"{own.spec.path}:seed=3"
    assert variant.home == own.home
    assert variant.base.name == "tiny"
    clean = Benchmark.load("vs100-ci-clean:seed=3")
    assert clean.base.name == "vs100-ci"
    assert clean.argument == "vs100-ci-clean:seed=3"
    assert clean.manifest.labels == Benchmark.load("vs100-ci:seed=3").manifest.labels
    assert clean.spec.memory == 1500


def test_a_path_with_a_colon_is_a_path(tiny, tmp_path):
    tiny()
    (tmp_path / "a:seed=1.toml").write_text((tmp_path / "tiny.toml").read_text())
    assert Benchmark.load(str(tmp_path / "a:seed=1.toml")).name == "tiny"
    assert Benchmark.load(f"{tmp_path}/a:seed=1.toml:steps=6").spec.steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ave-ci:seed=3", "toy-ci:first=6", "vs100-ci-clean:steps=4"])
def test_a_manifest_of_a_variant_survives_the_disk(name, tmp_path):
    from avbench.manifests.builder import verify
    from avbench.manifests.manifest import Manifest

    build(load_spec(name)).write(tmp_path / "v.parquet")
    assert Manifest.read(tmp_path / "v.parquet").fingerprint == (
        Benchmark.load(name).manifest.fingerprint
    )
    assert verify(tmp_path / "v.parquet")[1]
