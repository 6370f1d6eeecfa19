"""From a pool of pictures to a training set: embed, deduplicate, cluster, sample, retrieve, mix."""
