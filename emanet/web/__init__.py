"""The page around a model: a request becomes one call. Only the commands import it, and only it knows Gradio."""
