"""At home in people's tools: one file a framework, imported only when it is used.

``batchscope.integrations.lightning``, ``.transformers``, ``.accelerate`` and ``.skorch`` each turn what a person has
there into a :class:`batchscope.Workload`, and follow the gradient noise scale in the framework's own training loop.
Importing one of them imports its framework, which is an extra: ``pip install 'batchscope[lightning]'`` and so on.
"""
