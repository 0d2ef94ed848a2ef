"""The four LightningModules and the connector: the shelf of parts that YAML exchanges."""
