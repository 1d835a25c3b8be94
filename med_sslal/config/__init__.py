"""From a JSON file to built objects."""
