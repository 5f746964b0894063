// Does with its disk what it is told: 0 to 9 is a place, in MiB; r reads, w writes a sector there.
// Options: --mode long --scratch 1M

// It prints the status that the device gives to each request (0: done, 1: failed), and ends with the
// input. The driver polls. Its one queue and the one request that it ever makes (a header, data and
// a status) lie where RAM is zero so far, so only what is not zero is written.

.set DISK_QUEUE,  LOAD_FLAT + 0x10000   // descriptors
.set DISK_DRIVER, DISK_QUEUE + 0x1000   // the available ring
.set DISK_DEVICE, DISK_QUEUE + 0x2000   // the used ring
.set DISK_HEADER, DISK_QUEUE + 0x3000   // type, and from byte 8 the sector
.set DISK_STATUS, DISK_QUEUE + 0x3010
.set DISK_DATA,   DISK_QUEUE + 0x4000

.code64
.Ldisk:
    mov edi, VIRTIO_MMIO
    mov esi, DISK_QUEUE
    mov dword ptr [rdi + MMIO_STATUS], DRIVER
    mov dword ptr [rdi + MMIO_FEATURES_SELECT], 1
    mov dword ptr [rdi + MMIO_FEATURES], VERSION_1
    mov dword ptr [rdi + MMIO_STATUS], DRIVER + FEATURES_OK
    mov dword ptr [rdi + MMIO_QUEUE_SIZE], 4
    mov [rdi + MMIO_QUEUE_DESCRIPTORS], esi
    mov dword ptr [rdi + MMIO_QUEUE_DRIVER], DISK_DRIVER
    mov dword ptr [rdi + MMIO_QUEUE_DEVICE], DISK_DEVICE
    mov dword ptr [rdi + MMIO_QUEUE_READY], 1
    mov dword ptr [rdi + MMIO_STATUS], DRIVER + FEATURES_OK + DRIVER_OK

    mov dword ptr [rsi], DISK_HEADER
    mov dword ptr [rsi + 8], 16
    mov dword ptr [rsi + 12], MORE + (1 << 16)
    mov dword ptr [rsi + 16], DISK_DATA
    mov dword ptr [rsi + 24], 512
    mov dword ptr [rsi + 32], DISK_STATUS
    mov dword ptr [rsi + 40], 1
    mov dword ptr [rsi + 44], WRITABLE

.Ldisk_next:
    mov dx, CONSOLE_LINE
    in al, dx
    test al, DATA_READY
    jz .Ldisk_next
    mov dx, CONSOLE
    in al, dx
    cmp al, END_OF_INPUT
    je .Ldisk_end
    mov ecx, MORE + WRITABLE + (2 << 16)
    xor ebx, ebx                    // type 0: read
    cmp al, 'r'
    je .Ldisk_request
    mov ecx, MORE + (2 << 16)
    inc ebx                         // type 1: write
    cmp al, 'w'
    je .Ldisk_request
    sub al, '0'
    cmp al, 9
    ja .Ldisk_next
    movzx eax, al
    shl eax, 11                     // sectors of 512 bytes
    mov [rsi + DISK_HEADER - DISK_QUEUE + 8], eax
    jmp .Ldisk_next

.Ldisk_request:
    mov [rsi + 28], ecx             // how the data's descriptor goes on
    mov [rsi + DISK_HEADER - DISK_QUEUE], ebx
    inc word ptr [rsi + DISK_DRIVER - DISK_QUEUE + 2]
    mov dword ptr [rdi + MMIO_QUEUE_NOTIFY], 0
.Ldisk_busy:
    pause
    mov ax, [rsi + DISK_DEVICE - DISK_QUEUE + 2]
    cmp ax, [rsi + DISK_DRIVER - DISK_QUEUE + 2]
    jne .Ldisk_busy
    mov al, [rsi + DISK_STATUS - DISK_QUEUE]
    add al, '0'
    out dx, al
    mov al, '\n'
    out dx, al
    jmp .Ldisk_next

.Ldisk_end:
    xor eax, eax
    out EXIT, eax
