"""Promptable segmentation models behind one interface, `SegmentationBackbone`."""
