"""Every CUDA kernel compiles for every architecture, and needs neither local memory nor more than a block may have."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation.compiler import Compiler, compiling_only, usage

import fastconv
from fastconv import registry
from fastconv.backends.cuda import compiling, parameters, sources
from fastconv.backends.cuda.direct import work as direct
from fastconv.backends.cuda.tensorcore import work as tensorcore
from fastconv.notation import parse_problem

# By algorithm: problems that bring it to every one of its sources, tiles and element types.
PROBLEMS = {
    "cuda/direct": """
        conv2d n16 c64 i56 oc64 k3 p1
        conv2d n128 c256 i14 oc256 k3 p1 channels_last f16 bias relu
        conv2d:dgrad n16 c32 i56 oc64 k3 p1 s2
        conv2d:wgrad n16 c64 i56 oc64 k3 p1 bf16
        conv3d n1 c16 i32 oc24 k3 p1 f64
        linear n512 c1024 oc1024 f64
        conv2d n1 c32 i28 oc32 k3 p1 reflect
        locally_connected2d n8 c16 i14 oc32 k3
        linear n64 c1024 oc1000 bias
        conv2d:dgrad n1 c32 i28 oc32 k3 p1 reflect
    """,
    "cuda/bias_gradient": """
        conv2d:bgrad n16 c64 i56 oc64 k3 bias
        conv2d:bgrad n16 c64 i56 oc64 k3 bias channels_last f16
        locally_connected2d:bgrad n8 c16 i14 oc32 k3 bias_per_position
    """,
    "cuda/pool": """
        max_pool2d n128 c64 i112 k3 s2 p1 f16
        max_pool2d n128 c64 i112 k3 s2 p1 f16 channels_last
        max_pool2d n128 c64 i112 k3 s2 p1 f16 indices
        max_pool2d n128 c64 i112 k3 s2 p1 f16 indices channels_last
        adaptive_max_pool2d n16 c64 i56 o1 f16
        adaptive_max_pool2d n16 c64 i56 o1 f16 indices channels_last
        avg_pool2d n128 c64 i112 k3 s2 p1 f16
        avg_pool2d n128 c64 i112 k3 s2 p1 f16 channels_last
        adaptive_avg_pool2d n16 c64 i56 o1 f16
        adaptive_avg_pool2d n16 c64 i56 o1 f16 channels_last
        lp_pool2d n16 c64 i56 k2 f16 channels_last
        lp_pool2d n16 c64 i56 k2 f16 norm3
    """,
    "cuda/pool_gradient": """
        max_pool2d:dgrad n128 c64 i112 k3 s2 p1
        max_pool2d:dgrad n128 c64 i112 k3 s2 p1 channels_last
        avg_pool2d:dgrad n128 c64 i112 k3 s2 p1
        avg_pool2d:dgrad n128 c64 i112 k3 s2 p1 channels_last
        lp_pool2d:dgrad n16 c64 i56 k2
        lp_pool2d:dgrad n16 c64 i56 k2 channels_last
        lp_pool2d:dgrad n16 c64 i56 k2 norm3
    """,
    "cuda/unpool": """
        max_unpool2d n16 c64 i28 o56 f64
        max_unpool2d:dgrad n16 c64 i28 o56 f64
    """,
    "cuda/unfold": """
        unfold n16 c64 i28 k3 p1 f64
        unfold:dgrad n16 c64 i28 k3 p1 f64
    """,
    "cuda/tensorcore": """
        conv2d n16 c64 i56 oc64 k3 p1 f16 bias relu
        conv2d n128 c256 i14 oc256 k3 p1 f16 channels_last
        conv2d n128 c512 i7 oc2048 k1 bf16
        conv2d n16 c1024 i14 oc256 k1 f16
        conv2d n16 c24 i56 oc24 k3 p1 f16
        linear n128 c2048 oc1000 bf16
        conv2d:dgrad n128 c512 i7 oc2048 k1 f16
        conv3d:dgrad n4 c64 id8 ih28 iw28 oc64 k3 p1 f16
        conv2d:wgrad n16 c64 i56 oc64 k3 p1 f16
        conv2d:wgrad n128 c256 i14 oc256 k3 p1 f16
        conv2d:wgrad n128 c256 i14 oc256 k3 p1 bf16 channels_last
        conv2d:wgrad n16 c256 i14 oc256 k3 p1 f16 channels_last
        conv2d n16 c64 i56 oc64 k3 p1
        conv2d n128 c256 i14 oc256 k3 p1
        conv2d:wgrad n128 c256 i14 oc256 k3 p1
    """,
    "cuda/depthwise": """
        conv2d n16 c64 i112 oc64 k3 p1 s2 g64 bf16 relu
        conv2d:dgrad n16 c96 i56 oc96 k7 p3 g96 f16
        conv2d:dgrad n16 c64 i112 oc64 k3 p1 s2 g64
        conv2d:wgrad n16 c128 i28 oc128 k7 p3 g128 f64
        conv2d n16 c64 i112 oc64 k3 p1 g64 channels_last
        conv2d n16 c64 i112 oc64 k7 p3 g64 channels_last f16
        conv2d:dgrad n16 c64 i112 oc64 k3 p1 s2 g64 channels_last
        conv2d:wgrad n16 c64 i112 oc64 k3 p1 g64 channels_last f16
    """,
    "cuda/grouped": """
        conv2d n16 c128 i56 oc128 k3 p1 g32 bias relu
        conv2d n16 c128 i56 oc128 k3 p1 g32 channels_last f16
        conv2d:dgrad n16 c256 i56 oc256 k3 p1 s2 g32 f64
    """,
    "cuda/grouped_wgrad": """
        conv2d:wgrad n16 c128 i56 oc128 k3 p1 g32
        conv2d:wgrad n16 c128 i56 oc128 k3 p1 g32 channels_last f16
        conv2d:wgrad n16 c256 i56 oc256 k3 p1 s2 g8 bf16
        conv2d:wgrad n16 c64 i27 oc64 k5 p2 g64 bf16
        conv2d:wgrad n16 c64 i27 oc128 k4 p2 g64 f16
        conv2d:wgrad n16 c64 i28 oc64 k7 p3 g8 f64
        conv2d:wgrad n16 c64 i28 oc64 k5 p2 g4 f64 channels_last
    """,
    "cuda/winograd4": """
        conv2d n16 c64 i56 oc64 k3 p1 bias relu
        conv2d:dgrad n16 c64 i56 oc64 k3 p1 channels_last
    """,
}
TEXTS = {key: [line.strip() for line in lines.strip().splitlines()] for key, lines in PROBLEMS.items()}
# Registers of a multiprocessor; what a thread may have at most.
REGISTERS, MOST_REGISTERS = 65536, 255


def kernels_of(key):
    """Return the kernels that an algorithm prepares for its problems, with the sizes of their blocks."""
    with compiling_only(Compiler()) as compiler, fastconv.options(tf32=True):
        algorithm = registry.find(key)
        for text in TEXTS[key]:
            problem = parse_problem(text).replace(device="cuda")
            assert algorithm.refuses(problem) is None, text
            algorithm.plan(problem)
    return compiler.kernels


def cuda_algorithms():
    return [algorithm.key for algorithm in registry.algorithms() if algorithm.backend == "cuda"]


@pytest.mark.parametrize("arch", compiling.ARCHITECTURES)
@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.slow
def test_kernels_compile_without_spills(key, arch):
    for kernel, (block, shared) in kernels_of(key).items():
        used = usage(kernel.source, kernel.defines, arch)[kernel.name]
        what = f"{kernel} for {arch}: {used}"
        assert used.spilled == 0, what
        assert used.stack == 0, what
        assert used.registers <= MOST_REGISTERS, what
        assert used.registers * np.prod(block) <= REGISTERS, what
        assert shared <= (99 << 10), what


def test_every_algorithm_and_every_source_is_compiled():
    assert set(TEXTS) == set(cuda_algorithms())
    compiled = {kernel.source for key in TEXTS for kernel in kernels_of(key)}
    assert compiled == {path.name for path in sources.kernel_directory().glob("*.cu")}


def test_every_tile_is_compiled():
    compiled = {dict(kernel.defines).get("TILE") for key in TEXTS for kernel in kernels_of(key)}
    for tile in (*direct.TILES, *direct.WIDE_TILES):
        assert ", ".join(map(str, tile)) in compiled
    for tile in (*tensorcore.TILES, *tensorcore.NARROW_TILES):
        assert f"{tile.rows}, {tile.columns}, 32, {tile.warp_rows}, {tile.warp_columns}" in compiled


def test_mistake_is_reported_with_its_line(monkeypatch):
    monkeypatch.setattr(sources, "source", lambda name: "\n\nKERNEL oops;")
    sources.translation_unit.cache_clear()
    try:
        with pytest.raises(compiling.CompilationError, match=r"oops\.cu for sm_80.*(.|\n)*oops\.cu\(3\): error"):
            compiling.compiled("oops.cu", (), "sm_80")
    finally:
        sources.translation_unit.cache_clear()


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(const float* x, float* y) {
    float kept[128];
    for (int i = 0; i < 128; ++i) kept[i] = x[i * 1024 + threadIdx.x];
    for (int j = 0; j < 128; ++j) {
        for (int i = 0; i < 128; ++i) kept[i] = kept[i] * kept[(i + 1) % 128] + x[j];
    }
    for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = kept[i];
}
"""


def test_spills_are_seen(monkeypatch):
    monkeypatch.setattr(sources, "source", lambda name: SPILLING)
    sources.translation_unit.cache_clear()
    try:
        assert compiling.compiled("spilling.cu", (), "sm_90a").usage["spilling"].spilled > 0
    finally:
        sources.translation_unit.cache_clear()


def test_compiled_kernels_are_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    defines = next(k.defines for k in kernels_of("cuda/direct"))
    first = compiling.image_file("direct.cu", defines, "sm_80")
    assert first.is_relative_to(tmp_path) and first.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled again"))
    assert compiling.image_file("direct.cu", defines, "sm_80") == first


def test_without_a_place_to_keep_it_a_kernel_lasts_as_long_as_the_process(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(compiling, "compiled", lambda *_: compiling.Compiled(b"image", ""))
    first = compiling.image_file("direct.cu", (), "sm_80")
    assert first.read_bytes() == b"image"
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled again"))
    assert compiling.image_file("direct.cu", (), "sm_80") == first


@pytest.mark.parametrize("damaged", [b"", b"imag", b"imagf"])
def test_damaged_files_are_compiled_again(monkeypatch, tmp_path, damaged):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "compiled", lambda *_: compiling.Compiled(b"image", ""))
    compiling.image_file("direct.cu", (), "sm_80").write_bytes(damaged)
    assert compiling.image_file("direct.cu", (), "sm_80").read_bytes() == b"image"


def test_what_cannot_be_kept_leaves_no_draft(monkeypatch, tmp_path):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(compiling.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        compiling._stored(tmp_path / "direct.cubin", b"image")
    assert not list(tmp_path.iterdir())


def test_what_does_not_compile_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    with pytest.raises(compiling.CompilationError):
        compiling.image_file("direct.cu", (("ELEMENT", "no type"),), "sm_80")
    assert not list(tmp_path.rglob("*.*"))


def test_key_of_the_cache_holds_every_header(monkeypatch):
    text = sources.translation_unit("direct.cu")
    for path in sources.kernel_directory().glob("*.cuh"):
        if f'#line 1 "{path.name}"' in text:
            assert text.count(path.read_text().splitlines()[0]) == 1
    assert "#include" not in text and '#line 1 "fastdiv.cuh"' in text


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120")])
def test_architecture_of_a_gpu(capability, arch):
    assert compiling.architecture(capability) == arch


def test_gpu_newer_than_the_compiler_gets_ptx():
    assert compiling.architecture((99, 0)).startswith("compute_")


def test_fastdiv_is_prepared_as_the_kernels_do():
    for divisor in (1, 2, 3, 7, 640, 2**31 - 1, 2**32 - 1):
        _, multiplier, shift1, shift2 = parameters.fastdiv(divisor)
        for n in (0, 1, divisor - 1, divisor, 2**31, 2**32 - 1):
            t = (multiplier * n) >> 32
            assert (t + ((n - t) >> shift1)) >> shift2 == n // divisor


def test_struct_wants_every_field():
    struct = parameters.Struct(("x",), {"n": parameters.INT, "by": parameters.FASTDIV})
    assert len(struct.pack(n=3, by=parameters.fastdiv(3))) == 32
    with pytest.raises(TypeError, match=r"'by'.*differ"):
        struct.pack(n=3)
