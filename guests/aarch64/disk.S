// Does with its disk what it is told: 0 to 9 is a place, in MiB; r reads, w writes a sector there.
// Options: --scratch 1M

// It prints the status that the device gives to each request (0: done, 1: failed), and ends with the
// input. The driver polls. Its one queue and the one request that it ever makes (a header, data and
// a status) lie where RAM is zero so far, so only what is not zero is written. Without an MMU, loads
// and stores go past the cache, which the host uses: `dc civac` has the two agree on a line.

.set DISK_QUEUE,  RAM + 0x4000000   // descriptors
.set DISK_DRIVER, 0x1000            // from there: the available ring
.set DISK_DEVICE, 0x2000            // the used ring
.set DISK_HEADER, 0x3000            // type, and from byte 8 the sector
.set DISK_STATUS, 0x3040
.set DISK_DATA,   0x4000

.Ldisk:
    mov x19, #VIRTIO_MMIO
    mov x20, #DISK_QUEUE
    add x21, x20, #DISK_DRIVER
    add x22, x20, #DISK_DEVICE
    add x23, x20, #DISK_HEADER
    add x24, x23, #DISK_STATUS - DISK_HEADER
    mov w1, #DRIVER
    str w1, [x19, #MMIO_STATUS]
    mov w1, #1
    str w1, [x19, #MMIO_FEATURES_SELECT]
    str w1, [x19, #MMIO_FEATURES]   // VERSION_1 is 1 too
    mov w1, #DRIVER + FEATURES_OK
    str w1, [x19, #MMIO_STATUS]
    mov w1, #4
    str w1, [x19, #MMIO_QUEUE_SIZE]
    str w20, [x19, #MMIO_QUEUE_DESCRIPTORS]
    str w21, [x19, #MMIO_QUEUE_DRIVER]
    str w22, [x19, #MMIO_QUEUE_DEVICE]
    mov w1, #1
    str w1, [x19, #MMIO_QUEUE_READY]
    mov w1, #DRIVER + FEATURES_OK + DRIVER_OK
    str w1, [x19, #MMIO_STATUS]

    str w23, [x20]
    mov w1, #16
    str w1, [x20, #8]
    mov w1, #MORE + (1 << 16)
    str w1, [x20, #12]
    add x1, x20, #DISK_DATA
    str w1, [x20, #16]
    mov w1, #512
    str w1, [x20, #24]
    str w24, [x20, #32]
    mov w1, #1
    str w1, [x20, #40]
    mov w1, #WRITABLE
    str w1, [x20, #44]

    mov w25, #0                     // requests so far
    mov x1, #CONSOLE
.Ldisk_next:
    ldrb w2, [x1, #CONSOLE_LINE]
    tbz w2, #DATA_READY, .Ldisk_next
    ldrb w2, [x1]
    cmp w2, #END_OF_INPUT
    b.eq .Ldisk_end
    mov w3, #(2 << 16)
    add w4, w3, #MORE + WRITABLE
    mov w5, #0                      // type 0: read
    cmp w2, #'r'
    b.eq .Ldisk_request
    add w4, w3, #MORE
    mov w5, #1                      // type 1: write
    cmp w2, #'w'
    b.eq .Ldisk_request
    sub w2, w2, #'0'
    cmp w2, #9
    b.hi .Ldisk_next
    lsl w2, w2, #11                 // sectors of 512 bytes
    str w2, [x23, #8]
    b .Ldisk_next

.Ldisk_request:
    str w4, [x20, #28]              // how the data's descriptor goes on
    str w5, [x23]
    add w25, w25, #1
    strh w25, [x21, #2]
    dc civac, x20
    dc civac, x21
    dc civac, x23
    dsb sy
    str wzr, [x19, #MMIO_QUEUE_NOTIFY]
.Ldisk_busy:
    dc civac, x22
    dsb sy
    ldrh w2, [x22, #2]
    cmp w2, w25, uxth
    b.ne .Ldisk_busy
    dc civac, x24
    dsb sy
    ldrb w2, [x24]
    add w2, w2, #'0'
    strb w2, [x1]
    mov w2, #'\n'
    strb w2, [x1]
    b .Ldisk_next

.Ldisk_end:
    mov x1, #EXIT
    str wzr, [x1]
