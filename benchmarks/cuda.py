"""`python bench.py cuda`: all GPU measurements, each in a process and with a time limit of its own.

python bench.py cuda --out data/cuda --minutes 9          # run it again to go on: parts that are done stay
python bench.py cuda --out data/cuda --again compiled     # measure anew the parts whose names begin so

No network is needed. Beside torch, torchvision, transformers, scikit-learn, onnxscript, onnxruntime and OpenCV:
pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 timm ultralytics ImageHash
pip install --no-index --no-deps wheels/*.whl             # on the machine with the GPU
"""

from pathlib import Path

from benchmarks.parts import Part, run_parts

SLOWER_CPU = 5  # times longer that parts may take without a GPU
FEWER_FILMS = (50, 5)  # of the original's table


def plan_parts(settings, archs: list[str]) -> dict[str, Part]:
    """The parts by name, in the order of their worth, with their limits in seconds on a GPU.

    settings: benchmarks.cuda_parts.Settings.
    """
    from benchmarks import cuda_parts

    films = settings.films
    parts = {
        "machine": Part(cuda_parts.measure_machine, (), 90),
        "films": Part(cuda_parts.make_films, ("small", min(cuda_parts.SMALL_FILMS, films)), 120),
    }
    for arch in archs:
        parts[f"train {arch}"] = Part(cuda_parts.time_training, (arch, False), 100)
    parts["resume"] = Part(cuda_parts.check_resuming, (), 120)
    parts["export"] = Part(cuda_parts.check_export, (), 90)
    parts["torchrun"] = Part(cuda_parts.check_torchrun, (), 90)
    parts["filter"] = Part(cuda_parts.time_filter, (), 120)
    for arch in archs:
        parts[f"compiled {arch}"] = Part(cuda_parts.time_training, (arch, True), 240)
    if films > cuda_parts.SMALL_FILMS:
        parts["films of the table"] = Part(cuda_parts.make_films, ("large", films), 300)
    for arch in archs:
        parts[f"table {arch}"] = Part(cuda_parts.train_table, (arch, [films]), 600)
    fewer = [number for number in FEWER_FILMS if number < films]
    for arch in archs:
        if fewer:
            parts[f"fewer films {arch}"] = Part(cuda_parts.train_table, (arch, fewer), 300)
    return parts


def bench_cuda(
    *,
    out: Path,
    minutes: int = 9,
    films: int = 257,
    per_film: int = 230,
    epochs: int = 10,
    archs: str = "all",
    detector: str = "yolo11n.pt",
    again: str = "",
) -> None:
    """Everything that needs a GPU, on rendered films, one process per part; writes OUT/cuda.md and cuda.json.

    What is left undone is done when it is called again; parts whose names begin with AGAIN are done anew.
    """
    from benchmarks.cuda_parts import GPU, Settings
    from models import ARCHITECTURES

    names = list(ARCHITECTURES) if archs == "all" else archs.split(",")
    deit = "deit_base_patch16_224"
    settings = Settings(
        out=out.resolve(),
        films=films,
        per_film=per_film,
        epochs=epochs,
        detector=detector,
        arch=deit if deit in names else names[0],
    )
    parts = plan_parts(settings, names)
    if not GPU:
        parts = {name: Part(part.function, part.arguments, SLOWER_CPU * part.limit) for name, part in parts.items()}
    run_parts(parts, settings, minutes, again)
