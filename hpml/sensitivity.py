"""How much each heavy operator's INT8 form harms the output: measured, one operator at a time, on a few samples.

ONNX Runtime's quantizer puts QuantizeLinear and DequantizeLinear before every heavy operator; a switch before each then chooses between
the number and what is left of it in 8 bits. One graph with n switches is loaded once and run n + 1 times.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SAMPLES, MANY, LITTLE = 8, 32, 3 * 128 * 128  # of those for calibration; more where an input has few numbers and gives one answer


def ranked(source: Path, samples: "dict[str, np.ndarray]", *, kinds: tuple[str, ...], reader: Callable, seven_bits: bool = False,
           agreement: Callable | None = None) -> list[dict]:
    """The operators of `kinds` in the graph `source`, the most harmful first: [{"name", "op", "disagreement", "error"}, ...].

    disagreement: 1 - `agreement` (the workload's: share of the same answers) of the outputs with this operator alone in INT8 and those
    with none; error: their root-mean-square difference over that of the output itself. The first decides, the second where answers are
    the same. `reader` makes ONNX Runtime's calibration reader of samples.
    """
    import numpy as np
    import onnx
    import onnxruntime

    answers = onnx.load(source, load_external_data=False).graph.output[0].type.tensor_type.shape.dim
    little = len(answers) <= 2 and max(array[0].size for array in samples.values()) <= LITTLE  # a map answers at each of its places
    few = {name: array[:MANY if little else SAMPLES] for name, array in samples.items()}
    with tempfile.TemporaryDirectory(prefix="hpml-sensitivity-") as folder:
        probe = Path(folder, "probe.onnx")
        found = _switched(source, probe, reader(few), kinds, seven_bits)
        options = onnxruntime.SessionOptions()
        # With all optimizations ONNX Runtime would join the pairs into integer operators, whatever the switches say.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])

        def run(*quantized: int):
            switches = np.zeros(len(found), bool)
            switches[list(quantized)] = True
            return session.run(None, {**few, "switches": switches})[0].astype(np.float64)

        plain = run()
        size = float(np.sqrt((plain**2).mean())) or 1.0
        same = agreement or _same_class
        for i, one in enumerate(found):
            got = run(i)
            one |= {"disagreement": 1 - float(same(plain, got)), "error": float(np.sqrt(((got - plain) ** 2).mean())) / size}
    return sorted(found, key=lambda one: (-one["disagreement"], -one["error"], one["name"]))


def _same_class(wanted, got) -> float:
    return float((wanted.argmax(1) == got.argmax(1)).mean()) if wanted.ndim == 2 and wanted.shape[1] > 1 else 1.0


def _switched(source: Path, target: Path, reader, kinds: tuple[str, ...], seven_bits: bool) -> list[dict]:
    """Writes the graph with a switch for each operator of `kinds` that can be quantized; their names and types in the switches' order."""
    import onnx
    from onnx import TensorProto, helper
    from onnxruntime import quantization

    quantization.quantize_static(
        source, target, reader, quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(kinds), per_channel=True,
        reduce_range=seven_bits, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        extra_options={"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False, "CalibStridedMinMax": 1,
                       "OpTypesToExcludeOutputQuantization": list(kinds)})
    model = onnx.load(target)
    made_by = {output: node for node in model.graph.node for output in node.output}
    nodes, found = [], []
    for node in model.graph.node:
        pairs = []
        for place, name in enumerate(node.input[:2] if node.op_type in kinds else ()):
            back = made_by.get(name)
            if back is not None and back.op_type == "DequantizeLinear" and made_by[back.input[0]].op_type == "QuantizeLinear":
                pairs.append((place, made_by[back.input[0]].input[0], name))
        if pairs:
            switch = f"switch {len(found)}"
            nodes.append(helper.make_node("Gather", ["switches", f"{switch} place"], [switch], name=switch, axis=0))
            model.graph.initializer.append(helper.make_tensor(f"{switch} place", TensorProto.INT64, [], [len(found)]))
            found.append({"name": node.name, "op": node.op_type})
        for place, number, left in pairs:
            chosen = f"{node.name} input {place}"
            nodes.append(helper.make_node("Where", [switch, left, number], [chosen], name=f"{chosen} chosen"))
            node.input[place] = chosen
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info("switches", TensorProto.BOOL, [len(found)]))
    onnx.save(model, target)
    return found
