complete -c vfio-fast-doctor -l guest -d 'RAM of the guest, as 512G or 2T' -r
complete -c vfio-fast-doctor -l devices -d 'Number of devices to pass through' -r
complete -c vfio-fast-doctor -l root -d 'Look at the files below this directory in place of this host\'s' -r -F
complete -c vfio-fast-doctor -l viommu -d 'The guest has a virtual IOMMU: each device then has a container of its own'
complete -c vfio-fast-doctor -l json -d 'Print JSON'
complete -c vfio-fast-doctor -s h -l help -d 'Print help'
complete -c vfio-fast-doctor -s V -l version -d 'Print version'
