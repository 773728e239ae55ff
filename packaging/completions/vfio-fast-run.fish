complete -c vfio-fast-run -l stats-file -d 'The same, appended to this file' -r -F
complete -c vfio-fast-run -l timeline -d 'Write to this file when which thread has mapped, unmapped and faulted in what, for <https://ui.perfetto.dev>' -r -F
complete -c vfio-fast-run -l stats -d 'When the command ends, print on its standard error what was mapped, faulted in, and how long it took'
complete -c vfio-fast-run -s h -l help -d 'Print help'
complete -c vfio-fast-run -s V -l version -d 'Print version'
