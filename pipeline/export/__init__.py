"""Making a student ready to serve: a list of exporters, the check of what they wrote, model cards."""

from pipeline.export.exporters import EXPORTERS, export
from pipeline.export.onnx_graph import Graph, write_graphs

__all__ = ["EXPORTERS", "Graph", "export", "write_graphs"]
