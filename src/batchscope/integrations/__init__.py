"""What joins batchscope to other programs: a file each, imported when it is used.

``batchscope.integrations.lightning``, ``.transformers``, ``.accelerate`` and ``.skorch`` each turn what a person has
there into a :class:`batchscope.Workload`, and follow the gradient noise scale in the framework's own training loop.
``batchscope.integrations.tracker`` opens TensorBoard, MLflow and Weights & Biases. Importing a framework's file imports
the framework, which is an extra: ``pip install 'batchscope[lightning]'`` and so on.
"""
