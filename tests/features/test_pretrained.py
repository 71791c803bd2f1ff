"""AudioMAE and VideoMAE: golden numbers, independent forms, and weights where people have them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEImageProcessor

from avbench.features.decode import decode
from avbench.features.encoder import open_encoder
from avbench.features.encoders import audiomae, videomae
from avbench.features.encoders.audiomae import as_moviepy_writes, filter_banks, load_audiomae
from avbench.features.encoders.pretrained import PretrainedEncoder
from avbench.features.encoders.videomae import load_videomae, normalised
from avbench.features.encoders.weights import find_weights
from avbench.features.extract import extract
from avbench.features.store import FeatureStore, hash_preset
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, UsageError, silent

RED, BLUE = (220, 30, 30), (30, 30, 220)
DIM, HEADS = 24, 3


def golden_waveform(recipe: dict[str, Any]) -> np.ndarray:
    rate, count = recipe["sample_rate"], recipe["n_samples"]
    t = np.arange(count) / rate
    random = np.random.RandomState(recipe["recipe_seed"])
    left = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.05 * random.standard_normal(count) + 0.1
    right = 0.2 * np.sin(2 * np.pi * 900 * t) + 0.05 * random.standard_normal(count)
    return np.stack([left, right]).astype(np.float32)


def test_filter_banks_are_those_of_the_paper_s_code(golden: Callable) -> None:
    expected = golden("fbank.npz")
    waveform = golden_waveform(expected)
    np.testing.assert_array_equal(waveform[:, :5], expected["waveform_first5"])
    times = int(expected["shape"][-2])
    mels = filter_banks(torch.from_numpy(waveform), expected["sample_rate"], times=times).numpy()
    assert mels.shape == tuple(expected["shape"][-2:])
    np.testing.assert_allclose(mels[::37], expected["every_37th_frame"], atol=1e-3)
    np.testing.assert_allclose(mels.mean(), expected["mean"], atol=1e-3)
    valid = min(expected["valid_frames"], times)
    assert not mels[valid:].any()
    last = [np.abs(mels[row] - expected["last_frame"]).max() for row in (valid - 1, times - 1)]
    assert min(last) < 1e-3


def test_filter_banks_by_hand() -> None:
    """Kaldi's recipe once more: windows, pre-emphasis, Hann, power, triangles, logarithm."""
    rate, sound = 16_000, np.random.default_rng(1).normal(0, 0.1, (2, 5000)).astype(np.float32)
    ours = filter_banks(torch.from_numpy(sound), rate, times=40).numpy()
    left = sound[0].astype(np.float64) - sound.mean()
    rows = []
    for start in range(0, len(left) - 400 + 1, 160):
        window = left[start : start + 400] - left[start : start + 400].mean()
        window = window - 0.97 * np.concatenate([window[:1], window[:-1]])
        power = np.abs(np.fft.rfft(window * np.hanning(400), 512)) ** 2
        mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz) / 700)  # noqa: E731
        edges = np.linspace(mel(20), mel(rate / 2), 130)
        at = mel(np.arange(257) * rate / 512)
        rise = (at[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - at[:, None]) / (edges[2:] - edges[1:-1])
        triangles = np.maximum(0, np.minimum(rise, fall))
        triangles[256] = 0
        rows.append(np.log(np.maximum(power @ triangles, np.finfo(np.float32).eps)))
    np.testing.assert_allclose(ours[: len(rows)], rows, atol=2e-3)
    assert not ours[len(rows) :].any()
    assert len(rows) == 29


def test_long_sound_is_cut_and_hardly_any_is_silence() -> None:
    noise = torch.randn(1, 16_000 * 12, generator=torch.Generator().manual_seed(0))
    assert filter_banks(noise, 16_000).shape == (1024, 128)
    assert filter_banks(noise, 16_000).all()
    assert not filter_banks(noise[:, :100], 16_000).any()


def test_the_authors_take_the_nearest_sample_and_write_16_bits() -> None:
    sound = np.random.default_rng(2).normal(0, 0.5, (2, 44_100)).astype(np.float32)
    written = as_moviepy_writes(sound)
    assert written.shape == (2, 11_430)
    k = np.arange(11_430)
    nearest = sound[:, np.round(44_100 * (k / 11_430)).astype(int)]
    np.testing.assert_allclose(written, np.clip(nearest, -0.99, 0.99), atol=2**-15)
    np.testing.assert_array_equal(written * 2**15, np.round(written * 2**15))
    assert np.abs(written).max() <= 0.99


def write_golden_audiomae(folder: Path, golden: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights = {k[2:]: torch.from_numpy(np.array(v)) for k, v in golden.items() if k[:2] == "w."}
    _, channels, height, width = golden["x"].shape
    patch = weights["patch_embed.proj.weight"].shape[-1]
    config = {
        "architecture": "vit_tiny_patch16_224",
        "pretrained_cfg": {},
        "model_args": {
            "img_size": [height, width],
            "in_chans": channels,
            "patch_size": patch,
            "embed_dim": golden["embed_dim"],
            "depth": golden["depth"],
            "num_heads": golden["heads"],
            "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / golden["embed_dim"],
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return weights


def test_audiomae_is_that_of_the_paper_s_code(golden: Callable, tmp_path: Path) -> None:
    expected = golden("audiomae_tiny.npz")
    write_golden_audiomae(tmp_path, expected)
    model = load_audiomae(tmp_path)
    with torch.inference_mode():
        pooled = model(torch.from_numpy(expected["x"]))
        single = model.float()(torch.from_numpy(expected["x"]).float())
    np.testing.assert_allclose(pooled.numpy(), expected["y"], atol=1e-9)
    np.testing.assert_allclose(single.numpy(), expected["y"], atol=1e-5)


def test_a_self_supervised_audiomae_has_an_identity_for_its_last_norm(
    golden: Callable, tmp_path: Path
) -> None:
    expected = golden("audiomae_tiny.npz")
    weights = write_golden_audiomae(tmp_path, expected)
    scale, shift = weights.pop("fc_norm.weight").numpy(), weights.pop("fc_norm.bias").numpy()
    weights["norm.weight"] = weights["norm.bias"] = torch.ones(len(scale), dtype=torch.float64)
    save_file({k: v.clone() for k, v in weights.items()}, tmp_path / "model.safetensors")
    with torch.inference_mode():
        pooled = load_audiomae(tmp_path).double()(torch.from_numpy(expected["x"]))
    np.testing.assert_allclose(pooled.numpy() * scale + shift, expected["y"], atol=1e-9)


def test_weights_that_do_not_fit_are_told(golden: Callable, tmp_path: Path) -> None:
    expected = golden("audiomae_tiny.npz")
    weights = write_golden_audiomae(tmp_path, expected)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in weights.items() if k != "pos_embed"}, file)
    with pytest.raises(AvbenchError, match=r"do not fit config.json: pos_embed"):
        load_audiomae(tmp_path)
    save_file(weights | {"stranger": torch.ones(1)}, file)
    with pytest.raises(AvbenchError, match="stranger"):
        load_audiomae(tmp_path)
    save_file(weights | {"cls_token": torch.ones(1, 1, 5)}, file)
    with pytest.raises(AvbenchError) as caught:
        load_audiomae(tmp_path)
    assert "\n" not in str(caught.value)
    for damage in (b"", b"not safetensors at all", file.read_bytes()[:100]):
        file.write_bytes(damage)
        with pytest.raises(AvbenchError, match="not a model of timm"):
            load_audiomae(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AvbenchError, match="not a model of timm"):
        load_audiomae(tmp_path)


def videomae_config(**changes: Any) -> VideoMAEConfig:
    settings = {
        "hidden_size": DIM,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 40,
        "image_size": 48,
        "decoder_hidden_size": 12,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
        "use_mean_pooling": False,
    }
    return VideoMAEConfig(**settings | changes)


def write_videomae(folder: Path, **changes: Any) -> None:
    """A tiny model as the hub has the real one: for pre-training, with its decoder."""
    torch.manual_seed(5)
    model = VideoMAEForPreTraining(videomae_config(**changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def write_audiomae(folder: Path, dim: int = DIM) -> None:
    """A tiny model as the hub has the real one, for spectrograms of the real size."""
    arguments = {
        "img_size": [1024, 128],
        "in_chans": 1,
        "embed_dim": dim,
        "depth": 1,
        "num_heads": HEADS,
    }
    torch.manual_seed(6)
    model = timm.create_model("vit_base_patch16_224", global_pool="avg", num_classes=0, **arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_for_hf(
        model, folder, model_args=arguments | {"global_pool": "avg"}, safe_serialization=True
    )


def videomae_by_hand(weights: dict[str, np.ndarray], clips: np.ndarray) -> np.ndarray:
    """VideoMAE's encoder in NumPy: (B, 16, 3, H, W) to (B, 8 * cells, d)."""
    w = {k.removeprefix("videomae."): v.astype(np.float64) for k, v in weights.items()}
    b, t, c, high, wide = clips.shape
    tubes = clips.reshape(b, t // 2, 2, c, high // 16, 16, wide // 16, 16)
    tubes = tubes.transpose(0, 1, 4, 6, 3, 2, 5, 7).reshape(b, -1, c * 2 * 16 * 16)
    embed = w["embeddings.patch_embeddings.projection.weight"].reshape(DIM, -1)
    x = tubes @ embed.T + w["embeddings.patch_embeddings.projection.bias"]
    at = np.arange(x.shape[1])[:, None] / 10_000 ** (2 * (np.arange(DIM) // 2) / DIM)
    x = x + np.where(np.arange(DIM) % 2, np.cos(at), np.sin(at))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[name + ".weight"] + w[name + ".bias"]

    for layer in range(2):
        p = f"encoder.layer.{layer}."
        a = p + "attention.attention."
        y = norm(x, p + "layernorm_before")
        q = y @ w[a + "query.weight"].T + w[a + "q_bias"]
        k = y @ w[a + "key.weight"].T
        v = y @ w[a + "value.weight"].T + w[a + "v_bias"]
        q, k, v = (z.reshape(b, -1, HEADS, DIM // HEADS).transpose(0, 2, 1, 3) for z in (q, k, v))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(DIM // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(0, 2, 1, 3).reshape(b, -1, DIM)
        x = x + mixed @ w[p + "attention.output.dense.weight"].T
        x = x + w[p + "attention.output.dense.bias"]
        y = norm(x, p + "layernorm_after") @ w[p + "intermediate.dense.weight"].T
        y = y + w[p + "intermediate.dense.bias"]
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + y @ w[p + "output.dense.weight"].T + w[p + "output.dense.bias"]
    return norm(x, "layernorm")


def test_videomae_by_hand(tmp_path: Path) -> None:
    """Every weight of the hub's format arrives where it belongs, and tokens come frame by frame."""
    write_videomae(tmp_path)
    stored = {k: v.numpy() for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in stored
    clips = np.random.default_rng(0).normal(size=(2, 16, 3, 48, 48))
    model = load_videomae(tmp_path)
    with torch.inference_mode():
        tokens = model(torch.from_numpy(clips).float()).last_hidden_state
    assert tokens.shape == (2, 8 * 9, DIM)
    np.testing.assert_allclose(tokens.numpy(), videomae_by_hand(stored, clips), atol=2e-4)


def test_a_videomae_that_does_not_fit_is_told(tmp_path: Path) -> None:
    write_videomae(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    lacking = "videomae.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in stored.items() if k != lacking}, file)
    with pytest.raises(AvbenchError, match=r"do not fit config.json: encoder\.layer\.1\.output"):
        load_videomae(tmp_path)
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(AvbenchError, match="not a VideoMAE that can be built") as caught:
        load_videomae(tmp_path)
    assert "\n" not in str(caught.value)
    write_videomae(tmp_path, use_mean_pooling=True)
    with pytest.raises(AvbenchError, match="use_mean_pooling"):
        load_videomae(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("ran").touch, ())

    for write, load in ((write_audiomae, load_audiomae), (write_videomae, load_videomae)):
        folder = tmp_path / load.__name__
        write(folder)
        (folder / "model.safetensors").unlink()
        torch.save({"weights": Hostile()}, folder / "pytorch_model.bin")
        with pytest.raises(AvbenchError):
            load(folder)
    assert not (tmp_path / "ran").exists()


def test_pictures_are_brought_to_the_scale_of_the_image_processor(
    write_clip: Callable, tone: Callable
) -> None:
    """Scaled while decoding and cut: as the processor does with whole frames."""
    rng = np.random.default_rng(4)
    large = rng.integers(0, 255, (20, 9, 16, 3), np.uint8).repeat(40, axis=1).repeat(40, axis=2)
    path = write_clip(large, tone(440))
    look = {"frames": 16, "sample_rate": 8000}
    ours = decode(path, height=224, width=224, crop=True, **look).pictures
    full = decode(path, height=360, width=640, **look).pictures
    # Mean and deviation as the hub's preprocessor_config.json gives them; not the class's own.
    processor = VideoMAEImageProcessor(
        size={"shortest_edge": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    theirs = processor([Image.fromarray(f) for f in full], return_tensors="pt")["pixel_values"]
    difference = (normalised(torch.from_numpy(ours)[None]) - theirs).abs()
    assert difference.shape == (1, 16, 3, 224, 224)
    assert difference.mean() < 0.05


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_audiomae(tmp_path / "weights" / "audiomae")
    write_videomae(tmp_path / "weights" / "videomae")
    return tmp_path / "weights"


@pytest.fixture
def benchmark(
    tiny: Callable[..., Benchmark], write_clip: Callable, plain: Callable, tone: Callable
) -> Benchmark:
    """Ten clips of one second; one of them is none."""
    made = tiny(classes=2, classes_per_step=1, per_class=5)
    clips = made.home / "clips"
    clips.mkdir(parents=True)
    for number, clip_id in enumerate(made.manifest.clip_ids):
        path = clips / f"{clip_id}.mp4"
        write_clip(plain(RED, (30, 20 * number, 220)), tone(300 + 50 * number, 2.0), path=path)
    (clips / "c1-001.mp4").write_bytes(b"not a clip")
    return made


@pytest.mark.parametrize("preset", ["avcil", "audiomae-16k"])
def test_presets_end_to_end(benchmark: Benchmark, weights: Path, preset: str) -> None:
    encoder = open_encoder(preset, benchmark, device="cpu", weights=weights)
    store = extract(benchmark, encoder, workers=2, batch_size=4, report=silent)
    assert (len(store), store.dim, store.frames, store.cells) == (9, DIM, 8, 9)
    assert store.preset_name == preset
    assert store.failed.keys() == {"c1-001"}
    import hashlib

    for part in ("audiomae", "videomae"):
        digest = hashlib.sha256((weights / part / "model.safetensors").read_bytes()).hexdigest()
        assert digest == store.preset["audio" if part == "audiomae" else "visual"]["weights"]
    # A clip on its own gives what it gives in company.
    row = 5
    path = benchmark.home / "clips" / f"{store.clip_ids[row]}.mp4"
    ((audio, visual),) = encoder.encode([encoder.read(path)])
    np.testing.assert_allclose(store.read(row)[0], audio, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(store.read(row)[1], visual, atol=2e-3, rtol=2e-3)
    assert np.ptp(store.audio(np.arange(9)).astype(float), axis=0).max() > 1e-2
    # From the ground up: the parts put together by hand.
    clip = decode(
        path, frames=16, height=48, width=48, sample_rate=44_100, rate=8, crop=True, stereo=True
    )
    with torch.inference_mode():
        pictures = normalised(torch.from_numpy(clip.pictures.copy())[None])
        tokens = load_videomae(weights / "videomae")(pictures).last_hidden_state[0]
        if preset == "avcil":
            mels = filter_banks(torch.from_numpy(as_moviepy_writes(clip.waveform)), 11_430)
        else:
            sound = decode(path, frames=2, height=8, width=8, sample_rate=16_000).waveform
            mels = (filter_banks(torch.from_numpy(sound)[None], 16_000) + 4.268) / (2 * 4.569)
        pooled = load_audiomae(weights / "audiomae")(mels[None, None])[0]
    np.testing.assert_allclose(tokens, visual, atol=1e-4)
    np.testing.assert_allclose(pooled, audio, atol=1e-3)


def test_a_run_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(
    benchmark: Benchmark, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PretrainedEncoder("avcil", benchmark, "cpu", weights)
    encode, batches = encoder.encode, []

    def stopping(clips: Any) -> Any:
        batches.append(len(clips))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return encode(clips)

    monkeypatch.setattr(encoder, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(benchmark, encoder, workers=2, batch_size=3, report=silent)
    resumed = extract(benchmark, encoder, workers=2, batch_size=3, report=silent)
    assert sum(batches) == 9 + batches[2]  # only the batch it was stopped at came twice
    content = {path.name: path.read_bytes() for path in resumed.folder.iterdir()}
    resumed.folder.rename(tmp_path / "resumed")
    whole = extract(benchmark, encoder, workers=1, batch_size=3, report=silent)
    assert {path.name: path.read_bytes() for path in whole.folder.iterdir()} == content


def test_presets_differ_and_know_their_weights(benchmark: Benchmark, weights: Path) -> None:
    def preset_hash(name: str, benchmark: Benchmark = benchmark) -> str:
        return hash_preset(open_encoder(name, benchmark, device="cpu", weights=weights).describe())

    first = preset_hash("avcil")
    assert preset_hash("avcil") == first
    assert preset_hash("audiomae-16k") != first
    assert preset_hash("avcil", Benchmark.load("ave-ci")) != first  # ten frames a second, not eight
    assert preset_hash("avcil", Benchmark.load("ks-ci:seed=3")) == first
    stored = load_file(weights / "audiomae" / "model.safetensors")
    stored["fc_norm.bias"] += 1
    save_file(stored, weights / "audiomae" / "model.safetensors")
    assert preset_hash("avcil") != first


def test_half_the_precision_is_another_preset_and_nearly_the_same_features(
    benchmark: Benchmark, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way taken on a GPU, as far as a CPU can take it."""
    encoder = PretrainedEncoder("avcil", benchmark, "cpu", weights)
    described = encoder.describe()
    clip = encoder.read(benchmark.home / "clips" / "c0-000.mp4")
    ((audio, visual),) = encoder.encode([clip])
    monkeypatch.setattr(encoder, "_half", True)
    assert encoder.describe() == described | {"precision": "bfloat16"}
    ((rough_audio, rough_visual),) = encoder.encode([clip])
    assert rough_audio.dtype == rough_visual.dtype == np.float32
    assert 0 < np.abs(rough_visual - visual).mean() < 0.05 * np.abs(visual).mean()
    assert 0 < np.abs(rough_audio - audio).mean() < 0.05 * np.abs(audio).mean()


def test_models_that_do_not_go_together_are_told(benchmark: Benchmark, weights: Path) -> None:
    write_audiomae(weights / "audiomae", dim=36)
    with pytest.raises(AvbenchError, match=r"width 36.*width 24"):
        PretrainedEncoder("avcil", benchmark, "cpu", weights)
    config = json.loads((weights / "audiomae" / "config.json").read_text())
    config["model_args"] |= {"img_size": [64, 128]}
    (weights / "audiomae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(AvbenchError):
        PretrainedEncoder("avcil", benchmark, "cpu", weights)


def test_a_device_there_is_not(benchmark: Benchmark, weights: Path) -> None:
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(UsageError, match="cannot be used here"):
            open_encoder("avcil", benchmark, device=device, weights=weights)


def test_options_an_encoder_has_no_use_for(benchmark: Benchmark, tmp_path: Path) -> None:
    assert open_encoder("filterbank", benchmark).name == "filterbank"
    with pytest.raises(UsageError, match="filterbank features have no use for --weights"):
        open_encoder("filterbank", benchmark, weights=tmp_path)
    with pytest.raises(UsageError, match="no use for --device"):
        open_encoder("filterbank", benchmark, device="cpu")


def test_without_network_the_hub_s_name_and_the_way_round_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for hub_id, name in ((audiomae.HUB_ID, "audiomae"), (videomae.HUB_ID, "videomae")):
        with pytest.raises(AvbenchError, match=rf"{hub_id} .*DIR/{name} and pass --weights DIR"):
            find_weights(hub_id, name, None)


def test_weights_that_are_not_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        AvbenchError, match=rf"no .*/audiomae/config\.json: put .*{audiomae.HUB_ID}"
    ):
        find_weights(audiomae.HUB_ID, "audiomae", tmp_path)


def test_what_the_hub_has_is_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot as huggingface_hub lays it out, without network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / ("models--" + videomae.HUB_ID.replace("/", "--"))
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    with pytest.raises(AvbenchError, match=r"no model\.safetensors on the hub"):
        find_weights(videomae.HUB_ID, "videomae", None)
    write_videomae(snapshot)
    assert find_weights(videomae.HUB_ID, "videomae", None).samefile(snapshot)


@pytest.mark.slow
def test_the_command_line_prepares_and_evaluates(
    avbench: Callable, benchmark: Benchmark, weights: Path, tmp_path: Path
) -> None:
    videos = benchmark.home / "clips"
    toml = str(benchmark.spec.path)
    # Damaged clips never get so far by `prepare`, so that one is left out.
    (videos / "c1-001.mp4").unlink()
    prepare = ("prepare", toml, "--source", f"folder:{videos}", "--preset", "avcil")
    failure = avbench(*prepare, "--weights", "nowhere", expect=1).stderr
    assert audiomae.HUB_ID in failure
    assert failure.count("\n") == 1
    result = avbench(*prepare, "--weights", str(weights), "--batch-size", "3", expect=1)
    assert "9 of 10 clips are ready, with avcil features" in result.stdout
    folder = tmp_path / "home" / "tiny" / "features" / "avcil"
    assert FeatureStore.open(folder).preset["audio"]["model"] == audiomae.HUB_ID
    evaluate = ("evaluate", "--method", "finetune", "--benchmark", toml, "--seeds", "0")
    options = ("--set", "epochs=1", "--allow-missing")
    assert "avcil features" in avbench(*evaluate, "--preset", "avcil", *options).stdout
    assert (
        "--preset audiomae-16k"
        in avbench(*evaluate, "--preset", "audiomae-16k", *options, expect=1).stderr
    )
    folder.rename(folder.with_name("filterbank"))
    wrong = avbench(*evaluate, *options, expect=1).stderr
    assert "holds features of preset avcil, not filterbank" in wrong
    assert wrong.count("\n") == 1
