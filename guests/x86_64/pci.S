// Finds a device on the PCI bus, sizes its memory, moves it, and asks it for its status.
// Options: --mode long --rng --transport pci

// The status is 0, or the number of the first step that went wrong. A device is sized by writing
// ones to its base address register: those bits stay that choose its address.

.code64
.Lpci:
    mov edi, PCI_CONFIG
    mov esi, PCI_MEMORY + 0x100000  // where the memory is moved to

    mov ebx, 1                      // a host bridge is device 0
    cmp word ptr [rdi + PCI_CLASS], 0x0600
    jne .Lpci_end
    mov ebx, 2                      // there is no device 2: nobody drives the bus
    cmp dword ptr [rdi + 2 * PCI_DEVICE], -1
    jne .Lpci_end
    mov ebx, 3                      // virtio's source of entropy is device 1
    add edi, PCI_DEVICE
    cmp dword ptr [rdi], VIRTIO_ENTROPY
    jne .Lpci_end

    mov ebx, 4                      // it has 32 KiB, in an address of 64 bits
    mov dword ptr [rdi + PCI_BAR], -1
    cmp dword ptr [rdi + PCI_BAR], 0xffff8004
    jne .Lpci_end
    mov [rdi + PCI_BAR], esi
    mov dword ptr [rdi + PCI_BAR + 4], 0
    mov ebx, 5                      // which answers only once it may
    cmp word ptr [rsi + NUM_QUEUES], -1
    jne .Lpci_end
    mov word ptr [rdi + PCI_COMMAND], ANSWER_MEMORY
    mov ebx, 6                      // and has one queue
    cmp word ptr [rsi + NUM_QUEUES], 1
    jne .Lpci_end
    mov ebx, 7                      // the status keeps what is written
    mov byte ptr [rsi + DEVICE_STATUS], 3
    cmp byte ptr [rsi + DEVICE_STATUS], 3
    jne .Lpci_end
    xor ebx, ebx
.Lpci_end:
    mov eax, ebx
    out EXIT, eax
