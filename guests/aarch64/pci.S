// Finds a device on the PCI bus, sizes its memory, moves it, and asks it for its status.
// Options: --rng --transport pci

// The status is 0, or the number of the first step that went wrong. A device is sized by writing
// ones to its base address register: those bits stay that choose its address.

.Lpci:
    mov x19, #PCI_CONFIG
    mov x20, #PCI_MEMORY
    add x20, x20, #0x100, lsl #12   // where the memory is moved to
    mov w21, #-1

    mov w0, #1                      // a host bridge is device 0
    ldrh w1, [x19, #PCI_CLASS]
    cmp w1, #0x600
    b.ne .Lpci_end
    mov w0, #2                      // there is no device 2: nobody drives the bus
    add x2, x19, #2 * PCI_DEVICE
    ldr w1, [x2]
    cmp w1, w21
    b.ne .Lpci_end
    mov w0, #3                      // virtio's source of entropy is device 1
    add x19, x19, #PCI_DEVICE
    ldr w1, [x19]
    ldr w2, =VIRTIO_ENTROPY
    cmp w1, w2
    b.ne .Lpci_end

    mov w0, #4                      // it has 32 KiB, in an address of 64 bits
    str w21, [x19, #PCI_BAR]
    ldr w1, [x19, #PCI_BAR]
    ldr w2, =0xffff8004
    cmp w1, w2
    b.ne .Lpci_end
    str w20, [x19, #PCI_BAR]
    str wzr, [x19, #PCI_BAR + 4]
    mov w0, #5                      // which answers only once it may
    ldrh w1, [x20, #NUM_QUEUES]
    mov w2, #0xffff
    cmp w1, w2
    b.ne .Lpci_end
    mov w1, #ANSWER_MEMORY
    strh w1, [x19, #PCI_COMMAND]
    mov w0, #6                      // and has one queue
    ldrh w1, [x20, #NUM_QUEUES]
    cmp w1, #1
    b.ne .Lpci_end
    mov w0, #7                      // the status keeps what is written
    mov w1, #3
    strb w1, [x20, #DEVICE_STATUS]
    ldrb w1, [x20, #DEVICE_STATUS]
    cmp w1, #3
    b.ne .Lpci_end
    mov w0, #0
.Lpci_end:
    mov x1, #EXIT
    str w0, [x1]

    .ltorg
