"""Networks as linen modules, and the one way to compose them.

    image -> backbone -> context -> decoder -> classifier -> resize to the image

DeepLabv3's related work (sec. 2) names four kinds of networks. Here they are:

- image pyramid: `image_pyramid`, around any network;
- encoder-decoder: `decoders`, on the features of a backbone's stages;
- context module: `contexts.fully_connected`, and DeepLabv3's cascade, which is `backbones.resnet` with more blocks;
- spatial pyramid pooling: `contexts.aspp`, `contexts.pyramid_pooling`, `decoders.deeplabv2`.

`architectures` lists the parts of each name, `catalog.create_model` builds them, `segmenter.Segmenter` composes them.
"""
