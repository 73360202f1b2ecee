"""From a file to an input and from an output to a name: pictures, class names, samples."""
