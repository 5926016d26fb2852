"""Every page there is, for everybody: found by walking the URL resolver, with rows in every table there is."""
