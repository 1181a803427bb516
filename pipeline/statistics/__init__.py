"""What is computed of a part while its bytes are read: one module a statistic."""
