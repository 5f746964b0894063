// Finds what only a PC has: ACPI by a search, its timer, interrupt controllers, CMOS; then is off.
// Options: --machine pc --mode protected

// The CMOS's registers: Motorola MC146818A. The timer counts down on its own: Intel 8254, "Counter
// Latch Command". The mask of the interrupt controller reads back: Intel 8259A, OCW1.

.code32
.Lpc:
    mov esp, LOAD_FLAT + 0x1000
    mov esi, offset .Lpc_text
    mov edi, 0xe0000                // ACPI 6.5, 5.2.5.1: "RSD PTR " on a boundary of 16 bytes
.Lpc_search:
    cmp dword ptr [edi], 0x20445352
    jne .Lpc_next
    cmp dword ptr [edi + 4], 0x20525450
    je .Lpc_found
.Lpc_next:
    add edi, 16
    cmp edi, 0x100000
    jb .Lpc_search
    inc edi                         // clears ZF
.Lpc_found:
    call .Lpc_report

    mov al, 0x34                    // channel 0: both bytes, a rate generator
    out 0x43, al
    mov al, 0xff
    out 0x40, al
    out 0x40, al
    mov ecx, 1000                   // far more than a tick takes
.Lpc_timer:
    mov al, 0                       // latches channel 0
    out 0x43, al
    in al, 0x40
    mov ah, al
    in al, 0x40
    and al, ah
    cmp al, 0xff
    loope .Lpc_timer
    setne al
    dec al                          // sets ZF if it counts
    call .Lpc_report

    mov al, 0x5a
    out 0x21, al
    in al, 0x21
    cmp al, 0x5a
    call .Lpc_report

    mov al, 0x0d                    // status D: the battery is good
    out 0x70, al
    in al, 0x71
    cmp al, 0x80
    call .Lpc_report
    mov al, 0x15                    // KiB of low memory, the lower byte of 640
    out 0x70, al
    in al, 0x71
    cmp al, 0x80
    call .Lpc_report

    mov dx, PM1A_CONTROL
    mov ax, SLEEP_S5
    out dx, ax

// Prints the next text; ends with status 1 if ZF is not set.
.Lpc_report:
    setne bl
    mov dx, CONSOLE
.Lpc_print:
    lodsb
    test al, al
    jz .Lpc_printed
    out dx, al
    jmp .Lpc_print
.Lpc_printed:
    movzx eax, bl
    test eax, eax
    jz .Lpc_return
    out EXIT, eax
.Lpc_return:
    ret

.Lpc_texts:
    .asciz "ACPI\n"
    .asciz "timer\n"
    .asciz "interrupt controller\n"
    .asciz "CMOS\n"
    .asciz "size\n"
.set .Lpc_text, LOAD_FLAT + (.Lpc_texts - .Lpc)
.code64
