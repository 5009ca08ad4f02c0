"""Where evaluations were before `trainer.evaluate.evaluations`: what trainers of earlier releases still ask for."""
