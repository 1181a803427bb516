"""How did the weights travel between the checkpoints of a training run?

    import pipeline
    pipeline.analyze("EleutherAI/pythia-70m", store="results")
    pipeline.open_store("results").sql("FROM indicators WHERE scope = 'model'").show()
"""

from pipeline.api import analyze, open_store, plan

__all__ = ["analyze", "open_store", "plan"]
