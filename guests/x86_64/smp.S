// Each processor reports, starts the next by INIT and SIPI, and sleeps; the last (rbx) ends all.
// Options: --mode protected --cpus 4 --reg rbx=4

// Only the first processor runs at the start. An INIT interrupt makes another one wait, and a
// startup interrupt (SIPI) lets it go: in real mode, at a page below 1 MiB whose number the SIPI
// carries. So the way from there into protected mode, where the local APIC is in reach, is copied
// to such a page first. A real machine wants pauses between INIT and SIPI; KVM remembers both.

.set SMP_STUB,  0x8000              // page 8
.set SMP_COUNT, 0x7000              // how many processors there are

.code32
.Lsmp:
    mov [SMP_COUNT], ebx
    mov esi, offset .Lsmp_stub_source
    mov edi, SMP_STUB
    mov ecx, offset .Lsmp_stub_len
    cld
    rep movsb

.Lsmp_report:                       // every processor comes here
    mov ebx, [LAPIC_ID]
    shr ebx, 24                     // its number is the top byte
    mov edx, CONSOLE
    mov esi, offset .Lsmp_text
    mov ecx, 4
    rep outsb
    mov eax, ebx
    mov cl, 10
    div cl                          // al: tens, ah: ones
    add ax, '0' + ('0' << 8)
    cmp al, '0'
    je .Lsmp_ones
    out dx, al
.Lsmp_ones:
    mov al, ah
    out dx, al
    mov al, '\n'
    out dx, al

    inc ebx
    cmp ebx, [SMP_COUNT]
    je .Lsmp_end
    shl ebx, 24
    mov [LAPIC_ICR_HIGH], ebx
    mov dword ptr [LAPIC_ICR], SEND_INIT
    mov [LAPIC_ICR_HIGH], ebx
    mov dword ptr [LAPIC_ICR], SEND_STARTUP + (SMP_STUB >> 12)
.Lsmp_sleep:
    hlt
    jmp .Lsmp_sleep

.Lsmp_end:
    xor eax, eax
    out EXIT, eax

.Lsmp_message:
    .ascii "cpu "

.code16
.Lsmp_stub:                         // cs is 0x800, the other segments are 0
    lgdt ds:[.Lsmp_gdt_at]
    mov eax, cr0
    or al, 1                        // PE: protected mode, from the next far jump on
    mov cr0, eax
    ljmp 0x08, offset .Lsmp_protected_at
.code32
.Lsmp_protected:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov eax, offset .Lsmp_report_at
    jmp eax

// Flat segments: code at selector 0x08, data at 0x10.
.Lsmp_gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
.Lsmp_gdt_pointer:
    .word . - .Lsmp_gdt - 1
    .long SMP_STUB + (.Lsmp_gdt - .Lsmp_stub)
.Lsmp_stub_end:

.set .Lsmp_text, LOAD_FLAT + (.Lsmp_message - .Lsmp)
.set .Lsmp_stub_source, LOAD_FLAT + (.Lsmp_stub - .Lsmp)
.set .Lsmp_stub_len, .Lsmp_stub_end - .Lsmp_stub
.set .Lsmp_report_at, LOAD_FLAT + (.Lsmp_report - .Lsmp)
.set .Lsmp_gdt_at, SMP_STUB + (.Lsmp_gdt_pointer - .Lsmp_stub)
.set .Lsmp_protected_at, SMP_STUB + (.Lsmp_protected - .Lsmp_stub)
.code64
