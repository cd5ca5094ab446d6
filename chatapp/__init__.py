"""The application: wires models and knowledge to the user."""
