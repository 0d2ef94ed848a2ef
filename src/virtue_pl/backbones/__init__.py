"""The networks that parts are built from: segmentation models and vision-language models."""
