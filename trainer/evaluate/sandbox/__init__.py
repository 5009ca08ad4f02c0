"""Running what a model wrote: in namespaces of its own, without network, files or privileges, or not at all."""
