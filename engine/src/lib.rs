//! What is mapped for DMA and how it gets there.
