"""Rows of ``bench.json`` and the printed table, made of latencies (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridprune.measure.latency import Latency
from hybridprune.tables import Table

INT8 = {"onnx": "int8", "openvino": "openvino_int8"}
"""The forms of what an engine has quantised, by its form in fp32."""


def rows(
    found: Mapping[str, Latency],
    macs: Mapping[str, tuple[float, float]],
    batch: int,
    more: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The rows of ``bench.json``; arms are called ``network/form``.

    ``macs``: of each network those that it executes, and those that promise its speed-up.
    Speed-ups are over the dense network in the same form, of quantised ones over the dense one in fp32.
    """
    table = []
    fp32 = {int8: form for form, int8 in INT8.items()}
    for arm, latency in found.items():
        network, form = arm.split("/")
        base = found.get(f"dense/{fp32.get(form, form)}")
        executed, promised = macs[network]
        predicted = macs["dense"][1] / promised
        realised = base.median_ms / latency.median_ms if base else None
        table.append(
            {
                "network": network,
                "form": form,
                **latency.to_json(),
                "images_per_second": 1000 * batch / latency.median_ms,
                "macs": executed,
                "predicted_speedup": predicted,
                "realised_speedup": realised,
                **more.get(arm, {}),
            }
        )
    return table


def markdown(table: Mapping[str, Any]) -> str:
    """One batch size as a table."""
    head = ("Network", "Form", "ms (quartiles)", "Images/s", "Predicted", "Realised", "Realised / predicted")
    head += ("Weights MiB", "Activations MiB", "Accuracy")
    body = []
    for row in table["rows"]:
        spread = f"{row['median_ms']:.3f} ({row['lower_quartile_ms']:.3f} to {row['upper_quartile_ms']:.3f})"
        realised = row["realised_speedup"]
        gains = (f"{realised:.2f}", f"{realised / row['predicted_speedup']:.2f}") if realised else ("", "")
        memory = [f"{row[key] / 2**20:.3f}" if key in row else "" for key in ("weight_bytes", "activation_bytes")]
        accuracy = f"{row['accuracy']:.2%}" if "accuracy" in row else ""
        speed, predicted = f"{row['images_per_second']:.0f}", f"{row['predicted_speedup']:.2f}"
        body.append((row["network"], row["form"], spread, speed, predicted, *gains, *memory, accuracy))
    shown = Table(head, "llrrrrrrrr", body).markdown()
    return f"batch {table['batch']}, {place(table)}\n\n{shown}\n"


def place(table: Mapping[str, Any]) -> str:
    """The device and the threads that a table was measured with."""
    return f"{table['device']}, {table['threads']} thread{'s' if table['threads'] > 1 else ''}"
