"""Files of an export that runtimes of before can read, too. Nothing to run here; export.py does."""

from pathlib import Path


def make_portable(path: Path) -> None:
    """Lower what an .onnx asks of its reader to what its graph uses, and take out where it was made.

    torch and ONNX Runtime's tools write the newest version of the file that they know, and list sets of operations that
    nothing here uses: ONNX Runtime before 1.18 refuses such a file. torch also notes lines of its source at every node.
    """
    import onnx

    model = onnx.load(path)
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    # 8 for opset 18, the lowest that torch writes; ONNX Runtime reads it since 1.14, of January 2023
    model.ir_version = onnx.helper.find_min_ir_version_for(kept, ignore_unknown=True)
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def lower_pools(model) -> None:
    """Put AvgPool of opset 1 into an openvino.Model for that of opset 16, which OpenVINO 2024 does not know.

    They differ by dilations, and by windows that begin in the padding, which torch leaves out ("AvgPool-16" at
    https://docs.openvino.ai); a pool that needs either stays.
    """
    from openvino import opset1

    for node in model.get_ops():
        about = node.get_type_info()
        if about.name != "AvgPool" or about.version_id != "opset16":
            continue
        settings = node.get_attributes()
        if set(settings.pop("dilations", [1])) != {1}:
            continue
        settings = {name.replace("-", "_"): value for name, value in settings.items()}
        settings["kernel_shape"] = settings.pop("kernel")
        settings["rounding_type"] = settings["rounding_type"].removesuffix("_torch")
        lowered = opset1.avg_pool(node.input_value(0), **settings)
        if lowered.get_output_partial_shape(0) != node.get_output_partial_shape(0):
            continue
        lowered.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(lowered.output(0))
