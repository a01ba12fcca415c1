"""Data sets: what they are, how they are read, checked, augmented and batched.

Each line imports only from the lines below it:

    show, split, doctor    what `zoo data` and `zoo doctor` do
    load                   a folder, a dataset.yaml or FORMAT:PATH becomes a `Dataset`
    loading                batches: decoded images, augmentation, loaders
    description            dataset.yaml: reading it, and writing a first one
    formats                finding and pairing files: folders, lists, COCO, public layouts, the Hub
    inspect                facts of the files (sizes, label counts, hashes), class weights
    scenes                 writing the generated street scenes
    pixels                 reading image and mask files
    dataset                `Sample` and `Dataset`, plain data
"""
