"""From a recipe to a trained model: preparation, engines, the loop, Ray Train workers."""
