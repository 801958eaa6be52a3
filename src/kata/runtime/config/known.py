"""Keys, sections and annotations of Kata Containers that have no effect here.

Files written for Kata keep working, with a warning for each of these names; an annotation among them is refused.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYS: dict[str, frozenset[str]] = {
    "hypervisor.qemu": _names("""
        block_device_logical_sector_size block_device_physical_sector_size
        confidential_guest default_bridges disable_guest_selinux
        disable_image_nvdimm disable_nesting_checks disable_selinux disable_vhost_net
        enable_iommu_platform enable_iothreads enable_mem_prealloc enable_numa
        enable_swap enable_vhost_user_store enable_virtio_mem entropy_source extra_monitor_socket file_mem_backend
        firmware firmware_volume guest_memory_dump_paging guest_memory_dump_path
        guest_swap_size_percent hotplug_vfio_on_root_bus indep_iothreads
        machine_accelerators memory_offset network_queues num_queues numa_mapping overhead_memory
        overhead_vcpus pcie_switch_port pflashes queue_size reclaim_guest_freed_memory rootfs_type
        rootless seccomp_sandbox use_legacy_serial
        valid_entropy_sources valid_file_mem_backends valid_vhost_user_store_paths valid_virtio_fs_daemon_paths
        vhost_user_reconnect_timeout_sec vhost_user_store_path virtio_fs_cache_size virtio_fs_queue_size
        vm_rootfs_driver
        """),
    "agent.kata": _names("""
        cdh_api_timeout dial_timeout_ms mem_agent mem_agent_enable reconnect_timeout_ms
        """),
    "runtime": _names("""
        agent_name dan_conf disable_new_netns emptydir_mode enable_pprof
        enable_vcpus_pinning experimental guest_selinux_label hypervisor_name jaeger_endpoint
        jaeger_password jaeger_user keep_abnormal kubelet_root_dir name passfd_listener_port pod_resource_api_sock
        use_passfd_io
        """),
    "factory": _names("vm_cache_endpoint"),
}

SECTIONS = _names("""
    image netmon hypervisor.acrn hypervisor.clh hypervisor.cloud-hypervisor hypervisor.dragonball
    hypervisor.firecracker hypervisor.openvmm hypervisor.remote hypervisor.stratovirt
    """)

ANNOTATIONS: dict[str, frozenset[str]] = {
    "hypervisor": _names("""
        asset_hash_type blk_logical_sector_size blk_physical_sector_size block_device_num_queues
        block_device_queue_size cc_init_data ctlpath ctlpath_hash default_gpu_model default_gpus
        disable_image_nvdimm disable_vhost_net
        enable_iommu_platform enable_iothreads enable_mem_prealloc enable_swap enable_vhost_user_store
        enable_virtio_mem entropy_source file_mem_backend firmware firmware_hash firmware_volume firmware_volume_hash
        hotplug_vfio_on_root_bus hugepage_type image_hash indep_iothreads initrd_hash
        jailer_path jailer_path_hash kernel_hash kernel_verity_params machine_accelerators memory_offset
        network_queues numa_mapping path_hash pcie_switch_port prefetch_files.list
        reclaim_guest_freed_memory rootless use_legacy_serial
        vhost_user_reconnect_timeout_sec vhost_user_store_path virtio_fs_cache_size virtio_fs_daemon
        virtio_fs_extra_args
        """),
    "agent": frozenset({"cdh_api_timeout_ms"}),
    "factory": frozenset(),
    "runtime": _names("""
        agent_name disable_new_netns enable_pprof enable_vcpus_pinning experimental experimental_force_guest_pull
        guest_selinux_label hypervisor_name name sandbox_bind_mounts
        shared_mounts
        """),
}
