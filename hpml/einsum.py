"""A product with a weight that the exporter wrote as Einsum becomes a MatMul: quantizers know no Einsum, and would leave it in FP32.

XLNet's projections are written so. The same sums in the same order; the weight is stored as a matrix once, instead of at each call.
"""

import re
from pathlib import Path


def weights_as_matrices(path: Path) -> int:
    """Rewrites the ONNX file `path`; returns how many Einsum became MatMul. Einsum of two activations stays, as do letters of a weight
    that stand on all three sides."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    weights = {item.name: item for item in model.graph.initializer}
    nodes, changed = [], 0
    for node in model.graph.node:
        plan = _plan(node.attribute[0].s.decode()) if node.op_type == "Einsum" and len(node.input) == 2 else None
        if not plan or node.input[1] not in weights:
            nodes.append(node)
            continue
        kept, contracted, order = plan
        matrix = numpy_helper.to_array(weights[node.input[1]]).transpose(order)
        sizes = matrix.shape[contracted:]
        matrix = np.ascontiguousarray(matrix.reshape(int(np.prod(matrix.shape[:contracted])), -1))
        constants = {"matrix": matrix, "in": np.array([0] * kept + [-1], np.int64), "out": np.array([0] * kept + list(sizes), np.int64)}
        names = {what: f"{node.name} {what}" for what in constants}
        start, end = node.input[0], node.output[0]
        if contracted > 1:
            nodes.append(helper.make_node("Reshape", [start, names["in"]], [f"{node.name} flat"], name=f"{node.name} flat"))
            start = f"{node.name} flat"
        product = end if len(sizes) == 1 else f"{node.name} product"
        nodes.append(helper.make_node("MatMul", [start, names["matrix"]], [product], name=node.name))
        if len(sizes) > 1:
            nodes.append(helper.make_node("Reshape", [product, names["out"]], [end], name=f"{node.name} apart"))
        used = {"matrix", *(["in"] if contracted > 1 else []), *(["out"] if len(sizes) > 1 else [])}
        model.graph.initializer.extend(numpy_helper.from_array(constants[what], names[what]) for what in sorted(used))
        changed += 1
    if changed:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        needed = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
        for item in [item for item in model.graph.initializer if item.name not in needed]:
            model.graph.initializer.remove(item)
        onnx.save(model, path)
    return changed


def _plan(equation: str) -> tuple[int, int, list[int]] | None:
    """(leading letters that stay, letters summed over, order of the weight's axes) of "kept+summed,weight->kept+new"; else None."""
    found = re.fullmatch(r"([a-z]+),([a-z]+)->([a-z]+)", equation.replace(" ", ""))
    if not found:
        return None
    left, weight, out = found.groups()
    summed = [letter for letter in left if letter in weight and letter not in out]
    new = [letter for letter in out if letter not in left]
    kept = left[:len(left) - len(summed)]
    if left != kept + "".join(summed) or out != kept + "".join(new) or sorted(weight) != sorted(summed + new) or not summed or not new:
        return None
    return len(kept), len(summed), [weight.index(letter) for letter in summed + new]
